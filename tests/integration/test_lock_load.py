"""Locks under load: nobody starves, and no command costs a task or a second round trip."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.errors import LockUnavailable
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Granted, Held, Paused

KEY = "cron:store-auto-close"


async def test_sixty_four_tasks_get_their_turns_alike(redis_server: RedisServer) -> None:
    taken: list[float] = []

    async def cycles(locks: LockManager, number: int) -> None:
        for _ in range(30):
            began = time.perf_counter()
            assert await locks.acquire_lock(f"cron:{number}", 5000)
            assert await locks.release_lock(f"cron:{number}")
            taken.append(time.perf_counter() - began)

    async with LockManager(redis_server.url, clock=SystemClock(), deadline_s=10) as locks:
        await locks.is_locked(KEY)
        await asyncio.gather(*(cycles(locks, number) for number in range(64)))
        assert len(redis_server.cli("client", "list").splitlines()) == 2  # ours and redis-cli
    cuts = statistics.quantiles(taken, n=100)
    assert cuts[98] < 10 * cuts[49]  # starving ones had 200 times the median


async def test_each_of_many_callers_gets_its_own_replies(redis_server: RedisServer) -> None:
    async with LockManager(redis_server.url, clock=SystemClock(), deadline_s=10) as locks:
        await locks.is_locked(KEY)

        async def some(number: int) -> None:
            words = [f"{number}.{each}" for each in range(number % 50 + 1)]
            replies = await locks.link.call_all([("ECHO", word) for word in words])
            assert replies == [word.encode() for word in words]

        async def one(number: int) -> None:
            assert await locks.link.call("ECHO", f"{number}") == f"{number}".encode()

        gone = [asyncio.create_task(some(49)), asyncio.create_task(one(0))]
        await asyncio.sleep(0)
        for each in gone:
            each.cancel()
        await asyncio.gather(*(each(n) for n in range(200) for each in (some, one)))
        with pytest.raises(LockUnavailable, match="Redis refuses ECHO: ResponseError: unknown"):
            await locks.link.call_all([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])


async def test_a_command_makes_no_task(redis_server: RedisServer) -> None:
    made: list[str] = []

    def factory(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        made.append(repr(work))
        return asyncio.Task(work, loop=loop, **options)

    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        await locks.is_locked(KEY)
        asyncio.get_running_loop().set_task_factory(factory)  # type: ignore[arg-type]
        try:
            for _ in range(50):
                assert await locks.acquire_lock(KEY, 5000)
                assert await locks.release_lock(KEY)
        finally:
            asyncio.get_running_loop().set_task_factory(None)
    assert made == []


async def test_calls_in_flight_add_no_tasks_beyond_their_callers(own_redis: RedisServer) -> None:
    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=10) as locks:
        await locks.is_locked(KEY)
        before = len(asyncio.all_tasks())
        own_redis.pause()
        callers = [asyncio.create_task(locks.is_locked(f"cron:{n}")) for n in range(500)]
        session = locks.link._session
        assert session is not None
        while len(session._pending) < 500:
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before + 500
        own_redis.resume()
        assert not any(await asyncio.gather(*callers))


async def test_a_claims_answer_has_a_type_of_its_own_and_is_never_a_bool(
    redis_server: RedisServer,
) -> None:
    # The Redis 6.2 of the wheel has no SET with NX and GET together; the script needs none.
    async with (
        LockManager(redis_server.url, clock=SystemClock()) as locks,
        LockManager(redis_server.url, clock=SystemClock()) as other,
    ):
        granted = await locks.claim(KEY, 1000, 60_000)
        assert type(granted) is Granted
        held = await other.claim(KEY, 1000, 60_000)
        assert type(held) is Held and held.owner == granted.lease.token and held.tick == 1000
        await locks.release(granted.lease, settle=1000)
        assert type(await other.claim(KEY, 1000, 60_000)) is Done
        await locks.pause(KEY)
        assert type(await other.claim(KEY, 2000, 60_000)) is Paused
        assert await other.acquire_lock("cron:plain", 5000) is True
        assert await locks.acquire_lock("cron:plain", 5000) is False


async def test_a_survey_of_many_jobs_is_one_command(redis_server: RedisServer) -> None:
    keys = [f"cron:{n}" for n in range(300)]
    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        await locks.survey(keys)
        redis_server.cli("config", "resetstat")
        assert len(await locks.survey(keys)) == 300
        stats = redis_server.cli("info", "commandstats")
        assert "cmdstat_evalsha:calls=1," in stats
