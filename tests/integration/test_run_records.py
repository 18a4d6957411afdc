"""Runs that are recorded in Redis, where there is no database: what is true when it is away, comes
back, or is left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conftest import RedisServer
from ledgers import ledger_of
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.errors import NoDatabase, StorageUnavailable
from solocron.ledger import RunKey
from solocron.locks.manager import LockManager
from solocron.locks.own_records import OwnRecords
from solocron.locks.run_records import MOST_KEPT, RunRecords

CALENDAR = Calendar("* * * * *")
KEYS = [f"{{cron:one}}:{name}" for name in ("order", "runs", "running")]


def job(body: Body, **options: object) -> Job:
    return Job(name="one", calendar=CALENDAR, body=body, backoff_ms=1, **options)  # type: ignore[arg-type]


def latest() -> int:
    tick = CALENDAR.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


class Server:
    """A server without a database: its ledger, its runner and what it ran."""

    def __init__(self, locks: LockManager, lease_ms: int) -> None:
        ledger = ledger_of(None, locks)
        assert isinstance(ledger, RunRecords)
        self.ledger, self.ran = ledger, list[tuple[int, bool]]()
        self.locks = locks
        self.runner = Runner(
            locks=locks, ledger=ledger, clock=SystemClock(), owner="w", lease_ms=lease_ms
        )

    async def body(self, run: Run) -> None:
        self.ran.append((run.attempt, run.fallback))

    async def sweep(self, each: Job) -> None:
        """What its sweep does, once."""
        scheduler = Scheduler(
            [each], runner=self.runner, locks=self.locks, ledger=self.ledger, clock=SystemClock()
        )
        await scheduler.sweep()
        await scheduler.stop(10)


@asynccontextmanager
async def server(redis: RedisServer, lease_ms: int = 5000) -> AsyncIterator[Server]:
    async with LockManager(
        redis.url, clock=SystemClock(), deadline_s=0.2, lease_ms=lease_ms
    ) as locks:
        yield Server(locks, lease_ms)


@pytest.fixture
async def one(redis_server: RedisServer) -> AsyncIterator[Server]:
    async with server(redis_server) as one:
        yield one


async def states(server: Server) -> list[tuple[int, str, bool]]:
    rows = await server.ledger.history("one")
    return [(row["attempt"], row["state"], row["fallback"]) for row in rows]


async def test_without_redis_each_server_runs_a_tick_once_and_tells_redis_of_it_later(
    own_redis: RedisServer,
) -> None:
    tick = latest()
    async with server(own_redis) as one, server(own_redis) as two, server(own_redis) as three:
        own_redis.stop()
        for each in (one, two):
            first, again = [await each.runner.run_tick(job(each.body), tick) for _ in range(2)]
            assert (first.fallback, again.reason) == (True, "done")
        own_redis.start()
        for each in (two, one, two, three):  # as sweeps do: nobody has settled the tick
            outcome = await each.runner.run_tick(job(each.body), tick, origin="sweep")
            assert outcome.reason == "done"
        assert (one.ran, two.ran, three.ran) == ([(1, True)], [(1, True)], [])
        assert await states(three) == [(1, "succeeded", True)]


async def test_a_run_that_lost_redis_is_begun_again_where_it_was_and_nowhere_else(
    own_redis: RedisServer,
) -> None:
    began, tick = asyncio.Event(), latest()
    async with server(own_redis, 600) as one, server(own_redis, 600) as two:

        async def body(run: Run) -> None:
            await one.body(run)
            if run.attempt == 1:
                began.set()
                await asyncio.Event().wait()

        await two.sweep(job(two.body))  # it knows of Redis
        running = asyncio.create_task(one.runner.run_tick(job(body), tick))
        await began.wait()
        own_redis.stop()
        assert (await running).state == "lost"
        await two.sweep(job(two.body))
        await one.sweep(job(body))
        assert (one.ran, two.ran) == ([(1, False), (2, True)], [])
        own_redis.start()  # and it has forgotten all
        await one.sweep(job(body))
        await one.runner.run_tick(job(body), tick)
        assert len(one.ran) == 2
        assert await states(one) == [(2, "succeeded", True)]


async def test_a_body_that_ended_while_redis_was_away_is_not_run_again(
    tmp_path: Path,
) -> None:
    redis = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    try:
        async with server(redis, 600) as one, server(redis, 600) as two:

            async def body(run: Run) -> None:
                await one.body(run)
                redis.stop()

            running = asyncio.create_task(one.runner.run_tick(job(body), latest()))
            while redis.is_running:
                await asyncio.sleep(0.01)
            redis.start()
            outcome = await running
            assert (outcome.state, outcome.attempt) == ("succeeded", 1)
            assert (await two.runner.run_tick(job(two.body), latest())).reason == "done"
            assert (one.ran, two.ran) == ([(1, False)], [])
    finally:
        redis.stop()


async def test_a_tick_that_was_granted_and_could_not_begin_is_run_later(
    one: Server, redis_server: RedisServer
) -> None:
    redis_server.cli("SET", KEYS[1], "no hash")
    outcome = await one.runner.run_tick(job(one.body), latest())
    assert (outcome.state, outcome.reason) == ("skipped", "redis-down")
    redis_server.cli("DEL", KEYS[1])
    assert (await one.runner.run_tick(job(one.body), latest())).state == "succeeded"
    assert one.ran == [(1, False)]


async def test_a_run_that_killed_its_owners_while_redis_kept_count_is_given_up(
    one: Server, redis_server: RedisServer
) -> None:
    for _ in range(3):
        await one.ledger.begin("one", latest(), owner="gone", now_ms=0, lease_ms=0, max_attempts=3)
    outcome = await one.runner.run_tick(job(one.body, attempts=3), latest())
    assert (outcome.reason, one.ran) == ("done", [])
    (row,) = await one.ledger.history("one")
    assert row["state"] == "failed" and "3 attempts ended" in row["error"]


async def test_records_are_few_and_end(
    one: Server, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solocron.locks.run_records.MOST_KEPT", 5)
    assert MOST_KEPT > 1440
    tick = latest()
    for n in range(8):
        key = RunKey("one", tick + n, 1)
        await one.ledger.begin("one", key.tick, owner="w", now_ms=tick, lease_ms=0, max_attempts=3)
        if n:  # the first stays as it is: its owner went silent
            await one.ledger.finish(key, now_ms=tick, duration_ms=1)
    assert [row["tick"] - tick for row in await one.ledger.history("one")] == [7, 6, 5, 4, 3]
    assert [redis_server.cli("ZCARD", KEYS[0]), redis_server.cli("HLEN", KEYS[1])] == ["5", "5"]
    assert redis_server.cli("EXISTS", KEYS[2]) == "0"
    assert all(int(redis_server.cli("PTTL", key)) > 86_000_000 for key in KEYS[:2])


async def test_records_older_than_they_are_kept_go_with_the_next_run(
    one: Server, redis_server: RedisServer
) -> None:
    tick = latest()
    for each in (tick - 86_400_001, tick - 86_400_000 + 1, tick):
        await one.ledger.begin("one", each, owner="w", now_ms=0, lease_ms=0, max_attempts=3)
    found = await one.ledger.history("one")
    assert [row["tick"] for row in found] == [tick, tick - 86_400_000 + 1]


async def test_a_page_of_the_past_begins_where_the_one_before_ended(one: Server) -> None:
    for n in range(7):
        await one.ledger.begin("one", n, owner="w", now_ms=0, lease_ms=0, max_attempts=3)
    pages, before = [], None
    while page := await one.ledger.history("one", 3, before=before):
        pages.append([row["tick"] for row in page])
        before = pages[-1][-1]
    assert pages == [[6, 5, 4], [3, 2, 1], [0]]


async def test_what_cannot_be_had_is_refused_and_no_answer_is_unavailable(
    own_redis: RedisServer,
) -> None:
    async with server(own_redis) as one:
        with pytest.raises(NoDatabase, match="DATABASE_URL is none"):
            one.ledger.room()
        with pytest.raises(NoDatabase, match="DATABASE_URL is none"):
            one.ledger.fenced(RunKey("one", 0, 1))
        await one.ledger.answers()
        own_redis.pause()
        for question in (one.ledger.history("one"), one.ledger.heartbeat(RunKey("one", 0, 1), 1)):
            with pytest.raises(StorageUnavailable):
                await question
        own_redis.resume()


async def test_a_record_is_json_that_an_operator_can_read(
    one: Server, redis_server: RedisServer
) -> None:
    await one.runner.run_tick(job(one.body), latest())
    record = json.loads(redis_server.cli("HGET", KEYS[1], str(latest())))
    assert (record["job"], record["tick"], record["state"]) == ("one", latest(), "succeeded")


def test_of_too_many_runs_that_redis_does_not_know_those_that_go_on_are_kept() -> None:
    own = OwnRecords(SystemClock(), "w")

    def begin(tick: int) -> RunKey:
        record = {"job": "one", "tick": tick, "attempt": 1, "state": "running",
                  "origin": "schedule"}  # fmt: skip
        own.begin(record, lease_ms=60_000, max_attempts=3, fresh=False, again=0)
        return RunKey("one", tick, 1)

    long = begin(0)
    for tick in range(1, 3000):
        assert own.change(begin(tick), {"state": "succeeded"})
    assert own.has(long)
    assert len(own.of("one")) == 1000 and own.newest("one") == 2999
