"""A server whose clock is wrong runs no tick before its time, and keeps nobody from running it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Early, Granted
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger

KEY = "cron:one"
HOUR = 3_600_000
EVERY_MINUTE = Calendar("* * * * *")


class WrongClock(SystemClock):
    """The machine's clock, wrong by `wrong_ms`."""

    def __init__(self, wrong_ms: float = 0.0) -> None:
        self.wrong_ms = wrong_ms

    def now_ms(self) -> float:
        return super().now_ms() + self.wrong_ms


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    return [text for text in found if text.startswith(("ALARM", "RESOLVED"))]


def newest(clock: SystemClock) -> int:
    tick = EVERY_MINUTE.latest_at(clock.now_ms())
    assert tick is not None
    return tick


async def run_once(
    locks: LockManager, database: Database, clock: SystemClock, body: Any, **options: Any
) -> Outcome:
    """Run the newest tick by `clock`."""
    runner = Runner(locks=locks, ledger=RunLedger(database), clock=clock, owner="w", lease_ms=5000)
    job = Job(name="one", calendar=EVERY_MINUTE, body=body, **options)
    return await runner.run_tick(job, newest(clock))


async def nothing(run: Run) -> None:
    pass


async def test_a_server_hours_ahead_settles_nothing_for_the_others(
    redis_server: RedisServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    clock, right = WrongClock(3 * HOUR), SystemClock()
    async with (
        LockManager(redis_server.url, clock=clock) as locks,
        LockManager(redis_server.url, clock=right) as other,
    ):
        for _ in range(3):
            outcome = await run_once(locks, database, clock, nothing)
            assert (outcome.state, outcome.reason) == ("skipped", "clock-skew")
            await locks.survey([KEY])
        assert await RunLedger(database).history() == []
        kept = redis_server.cli("KEYS", "*cron:one*").split()
        assert kept == ["{cron:one}:looked"]
        assert (await run_once(other, database, right, nothing)).state == "succeeded"
        assert len(alarms(caplog)) == 1
        said = alarms(caplog)[0]
        assert "10800 s ahead of Redis's" in said and "NTP" in said
        clock.wrong_ms = 0.0
        for _ in range(2):
            assert isinstance(await locks.claim(KEY, newest(clock) - 60_000, 60_000), Done)
        assert alarms(caplog)[1:] == ["RESOLVED: this server's clock agrees with Redis's again"]


async def test_a_server_behind_is_only_late(
    redis_server: RedisServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    clock = WrongClock(-3 * HOUR)
    async with LockManager(redis_server.url, clock=clock) as locks:
        assert (await run_once(locks, database, clock, nothing)).state == "succeeded"
        assert len(alarms(caplog)) == 1 and "10800 s behind Redis's" in alarms(caplog)[0]


async def test_the_bound_is_between_the_clocks_not_between_a_tick_and_now(
    redis_server: RedisServer,
) -> None:
    async with LockManager(redis_server.url, max_skew_ms=60_000) as locks:
        now = int(SystemClock().now_ms())
        assert isinstance(await locks.claim(KEY, now + 70_000, 60_000), Early)
        granted = await locks.claim(KEY, now + 50_000, 60_000)
        assert isinstance(granted, Granted)
        await locks.release(granted.lease)


async def test_a_slow_answer_is_no_skew(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with LockManager(own_redis.url, deadline_s=10, max_skew_ms=200) as locks:
        await locks.is_locked(KEY)
        own_redis.pause()
        asking = asyncio.create_task(locks.survey([KEY]))
        await asyncio.sleep(0.6)
        own_redis.resume()
        await asking
    assert alarms(caplog) == []


async def test_a_clock_set_ahead_during_a_run_skips_no_later_tick(
    redis_server: RedisServer, database: Database
) -> None:
    clock = WrongClock()

    async def body(run: Run) -> None:
        clock.wrong_ms = 3.0 * HOUR

    async with LockManager(redis_server.url, clock=clock) as locks:
        tick = newest(clock)
        assert (await run_once(locks, database, clock, body)).state == "succeeded"
        assert redis_server.cli("GET", "{cron:one}:settled") == str(tick)


async def test_without_redis_the_databases_clock_judges(
    own_redis: RedisServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    clock = WrongClock(3 * HOUR)
    own_redis.stop()
    async with LockManager(own_redis.url, clock=clock, deadline_s=0.2) as locks:
        outcome = await run_once(locks, database, clock, nothing)
        assert (outcome.state, outcome.reason) == ("skipped", "clock-skew")
        assert await RunLedger(database).history() == []
        assert "10800 s ahead of the database's" in alarms(caplog)[0]
        clock.wrong_ms = 0.0
        assert (await run_once(locks, database, clock, nothing)).state == "succeeded"


async def test_by_a_wrong_clock_nothing_is_called_too_late(
    redis_server: RedisServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    clock = WrongClock(3 * HOUR)
    ledger = RunLedger(database)
    job = Job(name="one", calendar=Calendar("0 0 1 * *"), body=nothing, catch_up_ms=0)
    async with LockManager(redis_server.url, clock=clock) as locks:
        runner = Runner(locks=locks, ledger=ledger, clock=clock, owner="w", lease_ms=5000)
        scheduler = Scheduler([job], runner=runner, locks=locks, ledger=ledger, clock=clock)
        redis_server.cli("SET", "{cron:one}:settled", "1000", "PX", "60000")
        await scheduler.sweep()
        assert not [each for each in caplog.records if "missed" in each.getMessage()]
        clock.wrong_ms = 0.0
        await scheduler.sweep()
        assert len([each for each in caplog.records if "missed" in each.getMessage()]) == 1
