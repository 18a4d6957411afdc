"""Locks against a real redis-server: what each of the original's three functions promises."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

import pytest

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.errors import (
    ConfigError,
    LeaseLost,
    LockNotAcquired,
    LockReadOnly,
    LockUnavailable,
)
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Granted, Held, Paused, token_tick

KEY = "cron:store-auto-close"


def manager(server: RedisServer, **options: float) -> LockManager:
    return LockManager(server.url, clock=SystemClock(), **options)  # type: ignore[arg-type]


@pytest.fixture
async def one(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with manager(redis_server) as locks:
        yield locks


@pytest.fixture
async def other(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with manager(redis_server) as locks:
        yield locks


async def test_lock_acquisition_is_exclusive(one: LockManager, other: LockManager) -> None:
    assert await one.acquire_lock(KEY, 5000)
    assert not await other.acquire_lock(KEY, 5000)
    assert await other.is_locked(KEY)
    assert not await other.release_lock(KEY)
    assert await one.release_lock(KEY)
    assert not await one.release_lock(KEY)
    assert not await one.is_locked(KEY)


async def test_automatic_expiry_is_the_ttl_in_redis(
    one: LockManager, redis_server: RedisServer
) -> None:
    await one.acquire_lock(KEY, 600_000)
    assert 599 <= int(redis_server.cli("ttl", KEY)) <= 600
    keys = redis_server.cli("keys", "*").split()
    assert all(int(redis_server.cli("pttl", key)) > 0 for key in keys)


async def test_debug_commands_of_the_original_work(
    one: LockManager, redis_server: RedisServer
) -> None:
    await one.acquire_lock(KEY, 5000)
    assert redis_server.cli("keys", "cron:*") == KEY
    assert redis_server.cli("del", KEY) == "1"
    assert not await one.is_locked(KEY)


async def test_a_lock_of_the_original_system_is_honoured(
    one: LockManager, redis_server: RedisServer
) -> None:
    redis_server.cli("set", KEY, "locked", "PX", "60000", "NX")
    claim = await one.claim(KEY, 1000, 60_000)
    assert isinstance(claim, Held) and claim.owner == "locked" and claim.tick is None


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, 1e12, True])
async def test_an_absurd_ttl_is_a_value_error(one: LockManager, ttl: float) -> None:
    with pytest.raises(ConfigError) as caught:
        await one.acquire_lock(KEY, ttl)
    assert isinstance(caught.value, ValueError)


async def test_an_expired_owner_cannot_free_the_next_ones_lock(
    one: LockManager, redis_server: RedisServer
) -> None:
    assert await one.acquire_lock(KEY, 5000)
    redis_server.cli("del", KEY)  # as if it had expired

    async def second() -> None:
        assert await one.acquire_lock(KEY, 5000)

    await asyncio.create_task(second())
    assert not await one.release_lock(KEY)
    assert await one.is_locked(KEY)


async def test_a_tick_is_claimed_once_and_then_done(one: LockManager, other: LockManager) -> None:
    granted = await one.claim(KEY, 1000, 60_000)
    assert isinstance(granted, Granted)
    assert isinstance(await other.claim(KEY, 1000, 60_000), Held)
    await one.release(granted.lease, settle=1000)
    assert await other.claim(KEY, 1000, 60_000) == Done(1000)
    assert isinstance(await other.claim(KEY, 2000, 60_000), Granted)


async def test_a_paused_job_is_not_claimed(one: LockManager, other: LockManager) -> None:
    await one.pause(KEY)
    assert await other.claim(KEY, 1000, 60_000) == Paused()
    assert await one.resume(KEY)
    assert isinstance(await other.claim(KEY, 1000, 60_000), Granted)


async def test_lock_renewal_outlives_lease_and_ttl(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with manager(redis_server, lease_ms=300) as locks, locks.hold(KEY, 400) as lease:
        first = lease.deadline_s
        while lease.deadline_s < first + 0.6:
            await asyncio.sleep(0.02)
            assert await other.is_locked(KEY)
        lease.ensure()


async def test_a_silent_owner_is_taken_over_before_the_ttl(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with manager(redis_server, lease_ms=200) as locks:
        granted = await locks.claim(KEY, 1000, 600_000)
        assert isinstance(granted, Granted)
        locks._renewals._leases.clear()  # the owner falls silent
        while isinstance(claim := await other.claim(KEY, 1000, 600_000), Held):
            await asyncio.sleep(0.02)
        assert isinstance(claim, Granted)
        assert claim.previous_owner == granted.lease.token
        assert token_tick(claim.previous_owner) == 1000
        assert not await locks.release(granted.lease, settle=-1)
        assert isinstance(await locks.claim(KEY, 1000, 600_000), Held)


async def test_a_stolen_lock_cancels_the_body(redis_server: RedisServer) -> None:
    async with manager(redis_server, lease_ms=300) as locks:
        with pytest.raises(LeaseLost):
            async with locks.hold(KEY, 60_000):
                redis_server.cli("del", KEY)
                await asyncio.Event().wait()
        assert redis_server.cli("exists", KEY) == "0"  # never silently re-created


async def test_a_redis_outage_longer_than_the_lease_cancels_the_body(
    own_redis: RedisServer,
) -> None:
    async with manager(own_redis, lease_ms=600, deadline_s=0.2) as locks:
        with pytest.raises(LeaseLost):
            async with locks.hold(KEY, 60_000):
                own_redis.stop()
                await asyncio.Event().wait()


async def test_hold_of_a_held_lock_says_who(one: LockManager, other: LockManager) -> None:
    async with one.hold(KEY, 5000) as lease:
        with pytest.raises(LockNotAcquired, match=lease.token):
            async with other.hold(KEY, 5000):
                raise AssertionError


async def test_the_bodys_own_error_passes_and_the_lock_is_freed(one: LockManager) -> None:
    with pytest.raises(ZeroDivisionError):
        async with one.hold(KEY, 5000):
            raise ZeroDivisionError
    assert not await one.is_locked(KEY)


async def test_a_cancelled_acquire_leaves_no_lock(own_redis: RedisServer) -> None:
    async with manager(own_redis, deadline_s=5) as locks:
        await locks.is_locked(KEY)
        own_redis.pause()
        task = asyncio.create_task(locks.acquire_lock(KEY, 60_000))
        while not locks.link._session._pending:  # type: ignore[union-attr]
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        own_redis.resume()
    assert own_redis.cli("exists", KEY) == "0"


@pytest.mark.parametrize("fault", ["closed", "hung"])
async def test_redis_down_is_known_within_the_deadline_and_is_not_held(
    own_redis: RedisServer, fault: str
) -> None:
    async with manager(own_redis, deadline_s=0.5) as locks:
        await locks.is_locked(KEY)
        own_redis.stop() if fault == "closed" else own_redis.pause()
        began = time.monotonic()
        with pytest.raises(LockUnavailable):
            await locks.acquire_lock(KEY, 60_000)
        assert time.monotonic() - began < 1.0
        own_redis.start() if fault == "closed" else own_redis.resume()
        # The request that got no answer may be granted late: it must be given back, long before
        # the 60 s of its TTL.
        async with asyncio.timeout(5):
            while not await _acquired(locks):
                await asyncio.sleep(0.02)


async def _acquired(locks: LockManager) -> bool:
    try:
        return await locks.acquire_lock(KEY, 60_000)
    except LockUnavailable:
        return False


async def test_script_flush_is_survived(one: LockManager, redis_server: RedisServer) -> None:
    async with one.hold(KEY, 5000):
        redis_server.cli("script", "flush")
    assert not await one.is_locked(KEY)


async def test_a_read_only_replica_is_not_held(own_redis: RedisServer) -> None:
    async with manager(own_redis) as locks:
        await locks.is_locked(KEY)
        own_redis.cli("replicaof", "127.0.0.1", "1")
        with pytest.raises(LockReadOnly):
            await locks.acquire_lock(KEY, 5000)
        own_redis.cli("replicaof", "no", "one")
        assert await locks.acquire_lock(KEY, 5000)


async def test_out_of_memory_is_not_held(own_redis: RedisServer) -> None:
    async with manager(own_redis) as locks:
        await locks.is_locked(KEY)
        own_redis.cli("config", "set", "maxmemory", "1")
        with pytest.raises(LockReadOnly):
            await locks.acquire_lock(KEY, 5000)


async def test_many_tasks_share_one_connection_and_none_starves(
    one: LockManager, redis_server: RedisServer
) -> None:
    async def cycle(number: int) -> None:
        for _ in range(20):
            assert await one.acquire_lock(f"cron:{number}", 5000)
            assert await one.release_lock(f"cron:{number}")

    await asyncio.gather(*(cycle(number) for number in range(64)))
    assert redis_server.cli("keys", "*") == ""


async def test_every_lease_is_renewed_in_one_script(redis_server: RedisServer) -> None:
    async with manager(redis_server, lease_ms=900) as locks:
        claims = [await locks.claim(f"cron:{n}", 1000, 60_000) for n in range(50)]
        redis_server.cli("config", "resetstat")
        first = [c.lease.deadline_s for c in claims if isinstance(c, Granted)]
        while claims[-1].lease.deadline_s == first[-1]:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        stats = redis_server.cli("info", "commandstats")
        calls = next(line for line in stats.splitlines() if line.startswith("cmdstat_evalsha"))
        assert int(calls.split("calls=")[1].split(",")[0]) <= 3
