"""One run, where the body, the lock and the ledger disagree."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import RedisServer, fresh_database
from ledgers import NONE, ledger_of
from proxy import Proxy
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.errors import LeaseLost
from solocron.ledger import Ledger, RunKey
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger

CALENDAR = Calendar("* * * * *")
SETTLED = "{cron:one}:settled"


def job(body: Body, **options: Any) -> Job:
    return Job(name="one", calendar=CALENDAR, body=body, backoff_ms=1, **options)


def latest() -> int:
    tick = CALENDAR.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


def runner(locks: LockManager, ledger: Ledger, lease_ms: int = 5000) -> Runner:
    return Runner(locks=locks, ledger=ledger, clock=SystemClock(), owner="w", lease_ms=lease_ms)


async def quick(run: Run) -> None:
    return None


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        yield locks


@pytest.fixture
async def ledger(sqlite_url: str) -> AsyncIterator[RunLedger]:
    async with fresh_database(sqlite_url) as database:
        yield RunLedger(database)


@pytest.fixture(params=["sqlite", NONE])
async def either(
    request: pytest.FixtureRequest, locks: LockManager, sqlite_url: str
) -> AsyncIterator[Ledger]:
    """The ledger of a database, and that of none."""
    if request.param == NONE:
        yield ledger_of(None, locks)
        return
    async with fresh_database(sqlite_url) as database:
        yield ledger_of(database, locks)


async def crashed(ledger: Ledger, tick: int, lease_ms: int = 0) -> None:
    await ledger.begin("one", tick, owner="gone", now_ms=tick, lease_ms=lease_ms, max_attempts=3)


async def states(ledger: Ledger) -> dict[int, tuple[str, int]]:
    return {row["tick"]: (row["state"], row["attempt"]) for row in await ledger.history("one")}


async def test_a_redis_that_forgot_everything_does_not_run_a_finished_tick_again(
    locks: LockManager, ledger: RunLedger, redis_server: RedisServer
) -> None:
    tick, one = latest(), runner(locks, ledger)
    assert (await one.run_tick(job(quick), tick)).state == "succeeded"
    redis_server.cli("flushall")
    assert (await one.run_tick(job(quick), tick)).reason == "done"
    assert redis_server.cli("get", SETTLED) == str(tick)  # and Redis knows it again


async def test_a_queue_loses_no_tick_because_redis_forgot_which_was_the_last(
    locks: LockManager, ledger: RunLedger, redis_server: RedisServer
) -> None:
    tick, ran = latest(), list[int]()

    async def body(run: Run) -> None:
        ran.append(run.tick)

    one = runner(locks, ledger)
    await one.run_tick(job(body, overlap="queue"), tick - 180_000)
    redis_server.cli("flushall")
    await one.run_tick(job(body, overlap="queue"), tick)
    assert ran == [tick - 180_000, tick - 120_000, tick - 60_000, tick]


async def test_a_flush_in_mid_run_stops_the_run_and_the_next_attempt_is_larger(
    redis_server: RedisServer, ledger: RunLedger
) -> None:
    async def body(run: Run) -> None:
        if run.attempt == 1:
            redis_server.cli("flushall")
            await asyncio.Event().wait()

    tick = latest()
    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        one = runner(locks, ledger, lease_ms=300)
        assert (await one.run_tick(job(body), tick)).state == "lost"
        outcome = await one.run_tick(job(body), tick)
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)


async def test_a_crashed_tick_is_run_before_a_newer_one_although_redis_forgot_it(
    locks: LockManager, either: Ledger
) -> None:
    tick, ran = latest(), list[tuple[int, int]]()
    await crashed(either, tick - 60_000)

    async def body(run: Run) -> None:
        ran.append((run.tick, run.attempt))

    assert (await runner(locks, either).run_tick(job(body), tick)).state == "succeeded"
    assert ran == [(tick - 60_000, 2), (tick, 1)]


async def test_a_newer_tick_waits_for_an_older_one_that_still_runs_elsewhere(
    locks: LockManager, either: Ledger, redis_server: RedisServer
) -> None:
    tick, one = latest(), runner(locks, either)
    await crashed(either, tick - 60_000, lease_ms=60_000)
    assert (await one.run_tick(job(quick), tick)).reason == "overlap"
    assert redis_server.cli("exists", "cron:one", SETTLED) == "0"  # neither held nor settled
    await either.hand_over(RunKey("one", tick - 60_000, 1))
    assert (await one.run_tick(job(quick), tick)).state == "succeeded"
    assert await states(either) == {tick - 60_000: ("succeeded", 2), tick: ("succeeded", 1)}


@pytest.mark.parametrize("overlap", ["skip", "queue"])
async def test_without_redis_two_ticks_of_a_job_do_not_overlap_either(
    own_redis: RedisServer, ledger: RunLedger, overlap: str
) -> None:
    tick = latest()
    await crashed(ledger, tick - 120_000, lease_ms=60_000)
    own_redis.stop()
    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.2) as locks:
        one, each = runner(locks, ledger), job(quick, overlap=overlap)
        assert (await one.run_tick(each, tick)).reason == "overlap"
        await ledger.hand_over(RunKey("one", tick - 120_000, 1))
        assert (await one.run_tick(each, tick)).state == "succeeded"
    queued = {tick - 60_000: ("succeeded", 1)} if overlap == "queue" else {}
    assert await states(ledger) == {
        tick - 120_000: ("succeeded", 2), **queued, tick: ("succeeded", 1),
    }  # fmt: skip


async def test_a_silent_run_older_than_the_catch_up_window_is_closed_and_not_run(
    locks: LockManager, either: Ledger
) -> None:
    tick, ran = latest(), list[int]()
    await crashed(either, tick - 3_660_000)
    await crashed(either, tick - 3_600_000)  # the window's edge

    async def body(run: Run) -> None:
        ran.append(run.tick)

    await runner(locks, either).run_tick(job(body, catch_up_ms=3_600_000), tick)
    assert ran == [tick - 3_600_000, tick]
    assert (await states(either))[tick - 3_660_000] == ("failed", 1)


async def test_a_body_that_swallows_a_refusal_is_not_a_success(
    redis_server: RedisServer, ledger: RunLedger
) -> None:
    refused: list[str] = []

    async def body(run: Run) -> None:
        if run.attempt > 1:
            return
        time.sleep(0.4)  # noqa: ASYNC251  # the loop is stalled for longer than the lease
        try:
            async with run.transaction():
                raise AssertionError
        except Exception as error:
            refused.append(type(error).__name__)

    tick = latest()
    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        one = runner(locks, ledger, lease_ms=300)
        assert (await one.run_tick(job(body), tick)).state == "lost"
        outcome = await one.run_tick(job(body), tick)
    assert refused == ["LeaseLost"]
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)


def _elsewhere(redis_url: str, database_url: str, tick: int, taken: threading.Event) -> Outcome:
    """Another server, on a loop of its own: tries the tick until it has it."""

    async def main() -> Outcome:
        database = Database(database_url)
        async with LockManager(redis_url, clock=SystemClock(), lease_ms=500) as locks:
            one = runner(locks, RunLedger(database), lease_ms=500)
            async with asyncio.timeout(20):
                while (outcome := await one.run_tick(job(quick), tick)).state == "skipped":
                    await asyncio.sleep(0.05)
        await database.close()
        taken.set()
        return outcome

    return asyncio.run(main())


async def test_a_loop_stalled_past_its_lease_loses_the_run_and_writes_nothing(
    redis_server: RedisServer, ledger: RunLedger, sqlite_url: str
) -> None:
    tick, taken = latest(), threading.Event()
    refused: list[str] = []
    won: list[Outcome] = []
    survivor = threading.Thread(
        target=lambda: won.append(_elsewhere(redis_server.url, sqlite_url, tick, taken))
    )

    async def body(run: Run) -> None:
        survivor.start()
        assert taken.wait(20)  # blocks the loop: no renewal, no heartbeat
        try:
            async with run.transaction():
                raise AssertionError
        except LeaseLost as lost:
            refused.append(str(lost))
            raise

    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=500) as locks:
        one = runner(locks, ledger, lease_ms=500)
        assert (await one.run_tick(job(body), tick)).state == "lost"
    await asyncio.to_thread(survivor.join)
    assert [(each.state, each.attempt) for each in won] == [("succeeded", 2)]
    assert len(refused) == 1
    assert await states(ledger) == {tick: ("succeeded", 2)}


async def test_a_finish_whose_reply_was_lost_is_a_success_and_no_lost_run(
    locks: LockManager, postgres_url: str, redis_server: RedisServer
) -> None:
    async with Proxy.to_postgres(postgres_url) as proxy:
        database = Database(proxy.postgres_url(postgres_url))
        await database.migrate()

        async def body(run: Run) -> None:
            proxy.lose_reply_to(b"COMMIT")

        outcome = await runner(locks, RunLedger(database)).run_tick(job(body), latest())
        assert (proxy.lost, outcome.state, outcome.attempt) == (1, "succeeded", 1)
        await database.close()


async def test_a_body_that_is_done_is_not_run_again_because_both_stores_blipped(
    own_redis: RedisServer, postgres_url: str
) -> None:
    async with Proxy.to_postgres(postgres_url) as proxy:
        database = Database(proxy.postgres_url(postgres_url))
        await database.migrate()

        async def body(run: Run) -> None:
            own_redis.cli("flushall")
            await proxy.down()
            asyncio.get_running_loop().call_later(1.0, lambda: back.append(proxy.up()))

        back: list[Any] = []
        async with LockManager(own_redis.url, clock=SystemClock(), lease_ms=300) as locks:
            one = runner(locks, RunLedger(database), lease_ms=600)
            running = asyncio.create_task(one.run_tick(job(body), latest()))
            while not back:
                await asyncio.sleep(0.01)
            await back[0]
            outcome = await running
        assert (outcome.state, outcome.attempt) == ("succeeded", 1)
        await database.close()


async def test_a_run_is_handed_over_for_good_not_to_its_own_heartbeat(
    redis_server: RedisServer, either: Ledger
) -> None:
    running = asyncio.Event()

    async def stuck(run: Run) -> None:
        running.set()
        await asyncio.Event().wait()

    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        for _ in range(5):
            tick = latest()
            one = runner(locks, either, lease_ms=300)
            task = asyncio.create_task(one.run_tick(job(stuck, attempts=100), tick))
            await running.wait()
            running.clear()
            await asyncio.sleep(0.1)  # a third of the lease: a heartbeat is due
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert ("one", tick, "schedule") in await either.expired(["one"], tick)


@pytest.mark.parametrize("result", [5, True, ["x"], {"closed": "many", "n": 2}])
async def test_whatever_a_body_returns_its_run_is_written(
    locks: LockManager, either: Ledger, result: Any
) -> None:
    async def body(run: Run) -> Any:
        return result

    outcome = await runner(locks, either).run_tick(job(body), latest())
    assert outcome.state == "succeeded"
    assert outcome.counts == ({"n": 2} if isinstance(result, dict) else {})
