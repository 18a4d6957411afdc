"""Every tick that a server tries or skips is one entry of its journal, with the right verdict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import RedisServer, fresh_database
from solocron.clock import ScaledClock, SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.journal import Entry
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from workers import wall_ms

CALENDAR = Calendar("* * * * *")
MINUTE = 60_000


def latest() -> int:
    tick = CALENDAR.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


async def quick(run: Run) -> None:
    return None


def job(body: Body = quick, **options: Any) -> Job:
    return Job(name="one", calendar=CALENDAR, body=body, backoff_ms=1, **options)


class Noted:
    """A runner, and the entries of its journal."""

    def __init__(self, locks: LockManager, ledger: RunLedger, lease_ms: int = 5000) -> None:
        self.runner = Runner(
            locks=locks, ledger=ledger, clock=SystemClock(), owner="w", lease_ms=lease_ms
        )
        self.entries: list[Entry] = []
        self.runner.journal.listen(self.entries.append)

    async def run(self, job: Job, tick: int, origin: str = "schedule") -> list[tuple[int, str]]:
        """(minutes before `tick`, verdict) of each entry that one try made."""
        before = len(self.entries)
        await self.runner.run_tick(job, tick, origin=origin)
        return [((tick - each.tick) // MINUTE, each.verdict) for each in self.entries[before:]]


@pytest.fixture
async def ledger(sqlite_url: str) -> AsyncIterator[RunLedger]:
    async with fresh_database(sqlite_url) as database:
        yield RunLedger(database)


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        yield locks


async def test_a_run_and_what_others_see_of_it(locks: LockManager, ledger: RunLedger) -> None:
    running, finish = asyncio.Event(), asyncio.Event()

    async def body(run: Run) -> None:
        running.set()
        await finish.wait()

    tick, one, other = latest(), Noted(locks, ledger), Noted(locks, ledger)
    first = asyncio.create_task(one.run(job(body), tick))
    await running.wait()
    assert await other.run(job(body), tick) == [(0, "held")]
    assert other.entries[0].detail  # who holds it
    assert await other.run(job(body), tick + MINUTE) == [(0, "overlap")]
    finish.set()
    late = SystemClock().now_ms() - tick > 1000
    assert await first == [(0, "late" if late else "ran")]
    assert one.entries[0].attempt == 1
    assert await other.run(job(body), tick) == [(0, "done")]
    assert await other.run(job(body), tick) == []  # nothing new


async def test_an_older_tick_is_late_and_a_sweeps_is_recovered(
    locks: LockManager, ledger: RunLedger
) -> None:
    tick, one, queue = latest(), Noted(locks, ledger), job(overlap="queue")
    assert await one.run(queue, tick - 3 * MINUTE) == [(0, "late")]
    assert one.entries[0].late_ms >= 3 * MINUTE
    assert await one.run(queue, tick - MINUTE) == [(1, "late"), (0, "late")]
    assert await one.run(queue, tick, "sweep") == [(0, "recovered")]


async def test_the_tick_of_a_crashed_owner_has_an_entry_of_its_own(
    locks: LockManager, ledger: RunLedger
) -> None:
    tick, one = latest(), Noted(locks, ledger)
    await ledger.begin("one", tick - 5 * MINUTE, owner="gone", now_ms=0, lease_ms=0, max_attempts=3)
    await ledger.begin("one", tick - MINUTE, owner="alive", now_ms=0, lease_ms=60_000,
                       max_attempts=3)  # fmt: skip
    assert await one.run(job(), tick) == [
        (5, "recovered"), (1, "duplicate-prevented"), (0, "overlap"),
    ]  # fmt: skip
    assert one.entries[1].detail == "held: alive"


async def test_what_the_ledger_refuses_was_a_duplicate_prevented(
    locks: LockManager, ledger: RunLedger, redis_server: RedisServer
) -> None:
    tick, one = latest(), Noted(locks, ledger)
    await one.run(job(), tick)
    redis_server.cli("FLUSHALL")
    assert await one.run(job(), tick) == [(0, "duplicate-prevented")]
    standing = one.runner.journal.standing("one", tick)
    assert standing is not None and standing.begun


async def test_failures_and_losses(redis_server: RedisServer, ledger: RunLedger) -> None:
    async def fails(run: Run) -> None:
        raise ValueError("no stock")

    async def loses(run: Run) -> None:
        redis_server.cli("DEL", "cron:one")
        await asyncio.Event().wait()

    tick = latest()
    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        one = Noted(locks, ledger, lease_ms=300)
        assert await one.run(job(fails, attempts=2, overlap="queue"), tick - MINUTE) == [
            (0, "failed")
        ]
        assert one.entries[-1].detail == "ValueError: no stock"
        assert one.entries[-1].attempt == 2
        assert await one.run(job(loses), tick) == [(0, "lost")]
        assert "deleted" in one.entries[-1].detail
        assert await one.run(job(), tick) == [(0, "recovered")]


async def test_a_run_that_is_cancelled_was_given_back(
    locks: LockManager, ledger: RunLedger
) -> None:
    running = asyncio.Event()

    async def stuck(run: Run) -> None:
        running.set()
        await asyncio.Event().wait()

    one, tick = Noted(locks, ledger), latest()
    task = asyncio.create_task(one.run(job(stuck), tick))
    await running.wait()
    task.cancel()
    await asyncio.wait([task])
    assert [(each.verdict, each.detail) for each in one.entries] == [
        ("lost", "given back: the server stopped")
    ]
    assert await one.run(job(), tick) == [(0, "recovered")]


async def test_paused_and_without_redis_or_database(
    own_redis: RedisServer, ledger: RunLedger
) -> None:
    tick = latest()
    nowhere = Database("postgresql://nobody@127.0.0.1:1/none")
    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.3) as locks:
        one, other = Noted(locks, ledger), Noted(locks, ledger)
        await locks.pause("cron:one")
        assert await one.run(job(), tick) == [(0, "paused")]
        await locks.resume("cron:one")
        cut_off = Noted(locks, RunLedger(nowhere))
        assert await cut_off.run(job(), tick) == [(0, "database-down")]
        assert await cut_off.run(job(), tick, "sweep") == []
        own_redis.stop()
        assert await one.run(job(on_redis_down="skip"), tick) == [(0, "redis-down")]
        assert await one.run(job(), tick) == [(0, "fallback")]
        assert await other.run(job(), tick) == [(0, "duplicate-prevented")]
    await nowhere.close()


async def test_what_a_sweep_finds_is_recovered(locks: LockManager, ledger: RunLedger) -> None:
    tick, one = latest(), Noted(locks, ledger)
    await one.run(job(overlap="queue"), tick - 3 * MINUTE)
    scheduler = Scheduler(
        [job()], runner=one.runner, locks=locks, ledger=ledger, clock=SystemClock()
    )
    await scheduler.sweep()
    await scheduler.stop(20)
    assert [each.verdict for each in one.entries] == ["late", "recovered"]


async def test_missed_ticks_have_an_entry_each(locks: LockManager, ledger: RunLedger) -> None:
    tick, one = latest(), Noted(locks, ledger)
    await one.run(job(overlap="queue"), tick - 4 * MINUTE)
    nobody = job(catch_up_ms=0)
    soon = ScaledClock(anchor_ms=wall_ms(), start_ms=tick + 6000)  # the newest is missed as well
    scheduler = Scheduler([nobody], runner=one.runner, locks=locks, ledger=ledger, clock=soon)
    for _ in range(2):
        await scheduler.sweep()
    missed = [(each.tick - tick) // MINUTE for each in one.entries if each.verdict == "missed"]
    assert missed == [-3, -2, -1, 0]
