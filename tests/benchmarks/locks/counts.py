"""What a lock costs in commands, as Redis itself counts them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.common import BenchError
from conftest import RedisServer
from solocron import LockManager, SystemClock
from solocron.locks.results import Granted

LEASES = 200
_SENT = ("eval", "evalsha", "set", "exists", "del")  # of these a script calls only the last three
_TTL_MS = 60_000


def calls(redis: RedisServer) -> dict[str, int]:
    """How often Redis has run each command since it was told to forget, also within scripts."""
    found = re.findall(r"cmdstat_(\S+):calls=(\d+)", redis.cli("info", "commandstats"))
    return {name: int(count) for name, count in found if not name.startswith(("config", "info"))}


async def sent(redis: RedisServer, work: Callable[[], Awaitable[object]]) -> int:
    """How many scripts Redis was sent for it; nothing else may have been."""
    redis.cli("config", "resetstat")
    await work()
    found = calls(redis)
    scripts = found.get("evalsha", 0) + found.get("eval", 0)
    if found and not scripts:
        raise BenchError(f"Redis was sent other commands than scripts: {', '.join(found)}")
    return scripts


async def count(redis: RedisServer) -> dict[str, int]:
    """Scripts for each thing that is done with locks."""
    async with AsyncExitStack() as stack:
        one, other, renewing = [
            await stack.enter_async_context(
                LockManager(redis.url, clock=SystemClock(), lease_ms=lease_ms, deadline_s=30)
            )
            for lease_ms in (_TTL_MS, _TTL_MS, 3000)
        ]
        for each in (one, other, renewing):
            await each.is_locked("cron:warm")

        async def cycle() -> None:
            await one.acquire_lock("cron:free", _TTL_MS)
            await one.release_lock("cron:free")

        found = {"acquire and release": await sent(redis, cycle)}
        async with one.hold("cron:held", _TTL_MS) as lease:
            tries = {"a loser": other, "a loser in the holder's process": one}
            for name, locks in tries.items():
                found[name] = await sent(redis, lambda locks=locks: _refused(locks))
            lease.ensure()
        found[f"renewal of {LEASES} leases"] = await _renewal(redis, renewing)
        return found


async def _refused(locks: LockManager) -> None:
    if await locks.acquire_lock("cron:held", _TTL_MS):
        raise BenchError("a lock that was held was taken")


async def _renewal(redis: RedisServer, locks: LockManager) -> int:
    """Scripts for one renewal of many leases."""
    claims = await asyncio.gather(
        *(locks.claim(f"cron:lease-{n}", 1000, _TTL_MS) for n in range(LEASES))
    )
    leases = [each.lease for each in claims if isinstance(each, Granted)]
    if len(leases) < LEASES:
        raise BenchError("a lock that nobody held was not taken")

    async def renewed() -> None:
        before = [each.deadline_s for each in leases]
        async with asyncio.timeout(10):
            while any(a.deadline_s == b for a, b in zip(leases, before, strict=True)):
                await asyncio.sleep(0.005)

    scripts = await sent(redis, renewed)
    await asyncio.gather(*map(locks.release, leases))
    return scripts
