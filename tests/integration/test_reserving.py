"""Reserved locks: which ticks are ours, and which those of older servers on the same Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.cron.reserving import Reserving
from solocron.cron.ticks import Calendar
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Granted, Held

KEY = "cron:night"
HOUR = 3_600_000
MARGIN = 2_000
LONG = 60_000
SWEEP_S = 5


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with LockManager(redis_server.url, margin_ms=MARGIN) as locks:
        yield locks


def theirs(redis: RedisServer, key: str = KEY) -> bool:
    """An older server tries to get the lock."""
    return redis.cli("set", key, "locked", "PX", "60000", "NX") == "OK"


def now_ms() -> int:
    return int(time.time() * 1000)


async def reserve(locks: LockManager, *, last: int = -HOUR, following: int = HOUR) -> bool:
    """Reserve when the ticks before and after are so many ms from now."""
    now = now_ms()
    [reserved] = await locks.reserve([(KEY, now + last, now + following)], LONG)
    return reserved


async def test_a_reserved_lock_is_ours_before_during_and_after_each_run(
    locks: LockManager, redis_server: RedisServer
) -> None:
    assert await reserve(locks)
    assert not theirs(redis_server)
    for tick in (now_ms() + MARGIN + 1000, now_ms() + MARGIN + 2000):
        claim = await locks.claim(KEY, tick, LONG)
        assert isinstance(claim, Granted) and claim.previous_owner == ""
        assert not theirs(redis_server)
        assert await locks.release(claim.lease, settle=tick)
        assert not theirs(redis_server)
        assert isinstance(await locks.claim(KEY, tick, LONG), Done)


async def test_a_run_by_hand_leaves_the_lock_reserved(
    locks: LockManager, redis_server: RedisServer
) -> None:
    assert await reserve(locks)
    async with locks.hold(KEY, LONG):
        pass
    assert not theirs(redis_server)
    assert isinstance(await locks.claim(KEY, now_ms() + MARGIN + 1000, LONG), Granted)


async def test_a_server_without_the_setting_leaves_it_reserved_too(
    locks: LockManager, redis_server: RedisServer
) -> None:
    assert await reserve(locks)
    async with LockManager(redis_server.url) as other:
        claim = await other.claim(KEY, now_ms(), LONG)
        assert isinstance(claim, Granted)
        await other.release(claim.lease, settle=now_ms())
    assert not theirs(redis_server)


@pytest.mark.parametrize("reserved", [False, True])
async def test_a_tick_an_older_server_may_have_run_is_left_to_it_for_good(
    locks: LockManager, reserved: bool
) -> None:
    """Before the lock was reserved it could run, and free, any tick without a trace."""
    if reserved:
        assert await reserve(locks)
    tick = now_ms() + MARGIN - 500
    assert isinstance(await locks.claim(KEY, tick, LONG), Held)
    assert isinstance(await locks.claim(KEY, tick, LONG), Done)  # no sweep tries it again


async def test_nothing_is_reserved_while_an_older_server_may_yet_come_to_a_tick(
    locks: LockManager, redis_server: RedisServer
) -> None:
    assert not await reserve(locks, last=-MARGIN + 500)
    assert not await reserve(locks, following=MARGIN - 500)
    assert theirs(redis_server)
    assert not await reserve(locks)  # it runs
    redis_server.cli("del", KEY)
    assert await reserve(locks)
    assert await reserve(locks, last=-1, following=1)  # it stays so at any time


async def test_a_reservation_that_was_deleted_does_not_count_from_then_on(
    locks: LockManager, redis_server: RedisServer
) -> None:
    """A server that overran its TTL deletes whatever is there, and the next may run a tick."""
    assert await reserve(locks)
    redis_server.cli("del", KEY)
    assert isinstance(await locks.claim(KEY, now_ms(), LONG), Held)
    assert theirs(redis_server)
    assert not await reserve(locks)
    redis_server.cli("del", KEY)
    assert await reserve(locks)
    assert isinstance(await locks.claim(KEY, now_ms() + MARGIN - 500, LONG), Held)
    assert isinstance(await locks.claim(KEY, now_ms() + MARGIN + 2000, LONG), Granted)


async def test_a_run_by_hand_on_a_lock_that_was_deleted_does_not_reserve_it(
    locks: LockManager, redis_server: RedisServer
) -> None:
    assert await reserve(locks)
    redis_server.cli("del", KEY)
    async with locks.hold(KEY, LONG):
        pass
    assert theirs(redis_server)


async def test_a_lock_that_was_taken_over_stays_reserved(
    locks: LockManager, redis_server: RedisServer
) -> None:
    assert await reserve(locks)
    tick = now_ms() + MARGIN + 1000
    async with LockManager(redis_server.url, lease_ms=200) as other:
        dead = await other.claim(KEY, tick, LONG)
        assert isinstance(dead, Granted)
        other._renewals._leases.clear()  # it dies, and gives nothing back
    redis_server.cli("del", f"{{{KEY}}}:alive")  # its lease is over
    claim = await locks.claim(KEY, tick, LONG)
    assert isinstance(claim, Granted) and claim.previous_owner == dead.lease.token


async def test_it_ends_when_no_server_of_ours_is_left_or_an_operator_ends_it(
    locks: LockManager, redis_server: RedisServer
) -> None:
    now = now_ms()
    await locks.reserve([(KEY, now - HOUR, now + HOUR)], 100)
    async with asyncio.timeout(5):
        while not theirs(redis_server):
            await asyncio.sleep(0.01)
    redis_server.cli("del", KEY)
    assert await reserve(locks)
    assert await locks.unlock(KEY)
    assert redis_server.cli("keys", "*reserved") == ""
    assert theirs(redis_server)


async def test_every_key_it_sets_has_a_ttl(locks: LockManager, redis_server: RedisServer) -> None:
    await reserve(locks)
    await locks.claim(KEY, now_ms(), LONG)
    keys = redis_server.cli("keys", "*").split()
    assert len(keys) >= 2
    assert all(int(redis_server.cli("pttl", key)) > 0 for key in keys)


def job(schedule: str, name: str = "night", reserve: bool = True) -> Job:
    async def body(run: object) -> None: ...

    return Job(name=name, calendar=Calendar(schedule), body=body, reserve=reserve)


async def test_what_is_ours_is_said_once_and_so_is_what_can_never_be(
    locks: LockManager, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "solocron.cron")
    reserving = Reserving(locks, SystemClock(), SWEEP_S)
    jobs = [job("0 0 1 1 *"), job("* * * * * *", "often"), job("* * * * * *", "new", reserve=False)]
    for _ in range(3):
        await reserving.sweep(jobs)
    redis_server.cli("set", KEY, "locked", "PX", "60000")
    await reserving.sweep(jobs)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "The night cron is run by these servers only from now on",
        "The often cron may not be run here while its ticks are 1.0 s apart",
        "The night cron is left to the older servers until its lock can be reserved.",
    ]


async def test_how_far_ticks_must_be_apart_is_computed(
    locks: LockManager, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("five", "fifteen"):
        redis_server.cli("set", f"cron:{key}", "locked", "PX", "60000")  # none is reserved now
    reserving = Reserving(locks, SystemClock(), SWEEP_S)
    await reserving.sweep([job("*/5 * * * * *", "five"), job("*/15 * * * * *", "fifteen")])
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith("The five cron may not") and "from more than 10.0 s on" in said


async def test_a_job_that_older_servers_do_not_have_needs_no_reservation(
    locks: LockManager, redis_server: RedisServer
) -> None:
    await Reserving(locks, SystemClock(), SWEEP_S).sweep([job("0 0 1 1 *", reserve=False)])
    assert redis_server.cli("keys", "*") == ""
    assert isinstance(await locks.claim(KEY, now_ms(), LONG, reserve=False), Granted)


async def test_without_the_setting_nothing_is_reserved(redis_server: RedisServer) -> None:
    async with LockManager(redis_server.url) as locks:
        await Reserving(locks, SystemClock(), SWEEP_S).sweep([job("0 0 1 1 *")])
    assert theirs(redis_server)
