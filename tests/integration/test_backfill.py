"""Backfills: each tick of a span that has no run that succeeded is run once, by whomever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conftest import RedisServer, fresh_database
from solocron.clock import SystemClock
from solocron.cron.backfill import MOST_TICKS, Backfill, Backfilled, span_ms, ticks_of
from solocron.cron.job import Body, Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.errors import InvalidInput
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger

HOURLY = Calendar("0 * * * *", "Europe/Berlin")
HOUR_MS = 3_600_000
SETTLED = "{cron:one}:settled"


def job(body: Body, **options: Any) -> Job:
    return Job(name="one", calendar=HOURLY, body=body, backoff_ms=1, **options)


class Ran:
    """A body that notes what it ran; the ticks of `fails` fail."""

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.fails: set[int] = set()

    async def __call__(self, run: Run) -> None:
        self.ticks.append(run.tick)
        if run.tick in self.fails:
            raise ValueError("no")


def ticks(count: int) -> list[int]:
    """The last `count` ticks, but for the newest."""
    newest = HOURLY.latest_at(SystemClock().now_ms())
    assert newest is not None
    return [newest - n * HOUR_MS for n in range(count, 0, -1)]


class Server:
    """One of the servers or command lines that backfill."""

    def __init__(self, database: Database, locks: LockManager) -> None:
        self.ledger, self.locks = RunLedger(database), locks
        self.runner = Runner(
            locks=locks, ledger=self.ledger, clock=SystemClock(), owner="w", lease_ms=5000
        )

    def of(self, job: Job) -> Backfill:
        return Backfill(
            job, runner=self.runner, locks=self.locks, ledger=self.ledger, clock=SystemClock(),
            flush=_nothing,
        )  # fmt: skip

    async def fill(self, job: Job, span: list[int], told: Any = None) -> Backfilled:
        async with asyncio.timeout(60):
            backfill = self.of(job)
            plan, states = await backfill.plan(span[0], span[-1])
            return await backfill.run(plan, states, by="ann", told=told)

    async def rows(self) -> dict[int, dict[str, Any]]:
        return {row["tick"]: row for row in await self.ledger.history("one", 1000)}


async def _nothing() -> None: ...


@asynccontextmanager
async def server(database_url: str, redis_url: str) -> AsyncIterator[Server]:
    async with fresh_database(database_url) as database, LockManager(redis_url) as locks:
        yield Server(database, locks)


async def test_what_has_succeeded_is_left_and_the_rest_is_run_oldest_first(
    database_url: str, redis_server: RedisServer
) -> None:
    ran, span = Ran(), ticks(6)
    async with server(database_url, redis_server.url) as one:
        assert (await one.runner.run_tick(job(ran), span[1])).state == "succeeded"
        ran.fails = {span[3]}
        redis_server.cli("del", SETTLED)
        assert (await one.runner.run_tick(job(ran, attempts=1), span[3])).state == "failed"
        ran.fails.clear()
        ran.ticks.clear()
        settled = str(span[-1] + HOUR_MS)  # the schedule has done its part
        redis_server.cli("set", SETTLED, settled)
        told: list[int] = []
        found = await one.fill(job(ran), span, told=lambda each: told.append(each.done))
        rest = [tick for tick in span if tick != span[1]]
        assert (ran.ticks, found.wanted, found.ticks) == (rest, rest, 6)
        assert (found.succeeded, found.failed, told) == (5, 0, [1, 2, 3, 4, 5])
        assert redis_server.cli("get", SETTLED) == settled
        rows = await one.rows()
        assert {row["state"] for row in rows.values()} == {"succeeded"}
        assert (rows[span[1]]["origin"], rows[span[0]]["origin"]) == ("schedule", "backfill")
        again = rows[span[3]]
        assert (again["origin"], again["attempt"], again["error"]) == ("backfill", 2, None)
        assert rows[span[0]]["asked_by"] == "ann"
        assert (await one.fill(job(ran), span)).wanted == []


async def test_of_many_at_once_each_tick_is_run_by_one_also_if_it_fails(
    database_url: str, redis_server: RedisServer
) -> None:
    ran, span = Ran(), ticks(12)
    ran.fails = {span[4]}
    async with (
        server(database_url, redis_server.url) as one,
        server(database_url, redis_server.url) as two,
        server(database_url, redis_server.url) as three,
    ):
        found = await asyncio.gather(
            *(each.fill(job(ran, attempts=2), span) for each in (one, two, three))
        )
    counts = Counter(ran.ticks)
    assert counts == {tick: 2 if tick == span[4] else 1 for tick in span}
    assert sorted(counts) == span and [t for t in ran.ticks if t != span[4]] == sorted(
        set(span) - {span[4]}
    )
    assert sum(each.succeeded for each in found) == 11
    assert sum(each.failed for each in found) == 1
    assert {each.done for each in found} == {12}


async def test_an_interrupted_backfill_is_resumed_where_it_was(
    database_url: str, redis_server: RedisServer
) -> None:
    ran, span, begun = Ran(), ticks(5), asyncio.Event()

    async def slow(run: Run) -> None:
        await ran(run)
        if run.tick == span[2] and run.attempt == 1:
            begun.set()
            await asyncio.sleep(60)

    async with server(database_url, redis_server.url) as one:
        filling = asyncio.create_task(one.fill(job(slow), span))
        await begun.wait()
        filling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await filling
        assert not await one.locks.is_locked("cron:one")
        found = await one.fill(job(slow), span)
        assert found.wanted == span[2:] and found.succeeded == 3
        assert (await one.rows())[span[2]]["attempt"] == 2
    assert Counter(ran.ticks) == {**dict.fromkeys(span, 1), span[2]: 2}


async def test_the_schedule_goes_first_and_is_not_kept_from_its_tick(
    database_url: str, redis_server: RedisServer
) -> None:
    ran, span = Ran(), ticks(3)
    newest = span[-1] + HOUR_MS
    async with server(database_url, redis_server.url) as one:
        redis_server.cli("set", SETTLED, str(newest - HOUR_MS))
        every = job(ran, catch_up_ms=2 * HOUR_MS)
        await one.fill(every, span)
        assert ran.ticks == [newest, *span]
        assert redis_server.cli("get", SETTLED) == str(newest)
        rows = await one.rows()
    assert rows[newest]["origin"] == "schedule"


async def test_a_tick_that_was_backfilled_is_not_run_by_its_schedule(
    database_url: str, redis_server: RedisServer
) -> None:
    ran, span = Ran(), ticks(2)
    async with server(database_url, redis_server.url) as one:
        await one.fill(job(ran), span)
        outcome = await one.runner.run_tick(job(ran), span[-1])
        assert (outcome.reason, ran.ticks) == ("done", span)
        assert redis_server.cli("get", SETTLED) == str(span[-1])


def test_a_span_is_over_and_in_the_jobs_zone() -> None:
    one = job(Ran())
    now = datetime(2026, 6, 1, tzinfo=UTC)
    now_ms = now.timestamp() * 1000
    first, last = span_ms(
        one, datetime.fromisoformat("2026-05-01T02:00"), datetime(2026, 5, 1, 1, tzinfo=UTC), now_ms
    )
    assert (last - first) // HOUR_MS == 1  # 02:00 in Berlin is 00:00
    assert len(ticks_of(one, first, last)) == 2
    for since, until, complaint in (
        (now, now - timedelta(hours=1), "give a time, and one after it"),
        (now, now + timedelta(hours=1), "give a time that has come"),
        (datetime.min.replace(tzinfo=UTC), now, "give a time, and one after it"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            span_ms(one, since, until, now_ms)


def test_too_many_ticks_are_refused_with_how_far_one_may_go() -> None:
    one = job(Ran())
    first = HOURLY.next_after(1_700_000_000_000)
    assert len(ticks_of(one, first, first + (MOST_TICKS - 1) * HOUR_MS)) == MOST_TICKS
    with pytest.raises(InvalidInput, match=r"more than 10000 ticks in the span; .* go to 20"):
        ticks_of(one, first, first + MOST_TICKS * HOUR_MS)
