"""Runs by hand: each has a row of its own, its parameters, who asked for it, and what it gave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conftest import RedisServer
from run_world import CALENDAR, latest
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.manual import Asked, own_tick
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.errors import ConfigError, InvalidInput, UnknownJob
from solocron.ledger import RunKey
from solocron.locks.manager import LockManager
from solocron.service import Solocron
from solocron.settings import load
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from workers import until

TICK = 1_800_000_000_000  # a minute


class World:
    """A few servers on one Redis and one database."""

    def __init__(self, database: Database, locks: LockManager) -> None:
        self.ledger = RunLedger(database)
        self.locks = locks
        self.clock = SystemClock()

    def runner(self, owner: str = "w", lease_ms: int = 5000) -> Runner:
        return Runner(
            locks=self.locks, ledger=self.ledger, clock=self.clock, owner=owner, lease_ms=lease_ms
        )

    async def rows(self) -> list[dict[str, Any]]:
        return list(reversed(await self.ledger.history("one")))


@pytest.fixture
async def world(database: Database, redis_server: RedisServer) -> AsyncIterator[World]:
    async with LockManager(redis_server.url) as locks:
        yield World(database, locks)


def one(body: Body, **options: Any) -> Job:
    return Job(name="one", calendar=CALENDAR, body=body, backoff_ms=1, **options)


async def given(run: Run) -> dict[str, Any]:
    return dict(run.params)


def test_the_tick_of_a_run_by_hand_is_none_of_a_schedules() -> None:
    assert own_tick(TICK) == TICK + 1
    assert own_tick(TICK + 999.9) == TICK + 999


async def test_runs_asked_for_in_one_ms_have_a_row_each_and_settle_no_tick(
    world: World, redis_server: RedisServer
) -> None:
    job, runner = one(given, params={"n": 0}), world.runner()
    tick = int(world.clock.now_ms()) // 60_000 * 60_000
    for n in range(3):
        asked = Asked({"n": n}, by=f"user-{n}")
        outcome = await runner.run_tick(job, tick, origin="manual", asked=asked)
        assert (outcome.state, outcome.tick, outcome.result) == (
            "succeeded",
            tick + 1 + n,
            {"n": n},
        )
    assert redis_server.cli("get", "{cron:one}:settled") == ""
    assert (await runner.run_tick(job, tick)).state == "succeeded"  # the schedule's own
    rows = await world.rows()
    assert [(row["tick"], row["origin"]) for row in rows] == [
        (tick, "schedule"), *((tick + 1 + n, "manual") for n in range(3))
    ]  # fmt: skip
    assert [row["asked_by"] for row in rows] == [None, "user-0", "user-1", "user-2"]
    assert [row["params"] for row in rows] == [None, '{"n":0}', '{"n":1}', '{"n":2}']


async def test_without_redis_runs_of_one_ms_on_several_servers_have_a_row_each(
    database: Database, own_redis: RedisServer
) -> None:
    async with LockManager(own_redis.url, deadline_s=0.2) as locks:
        world = World(database, locks)
        own_redis.stop()
        job = one(given, params={"n": 0})
        outcomes = await asyncio.gather(
            *(
                world.runner(f"w{n}").run_tick(job, TICK, origin="manual", asked=Asked({"n": n}))
                for n in range(5)
            )
        )
    assert {each.state for each in outcomes} == {"succeeded"}
    assert sorted(each.result["n"] for each in outcomes) == [0, 1, 2, 3, 4]
    assert len({each.tick for each in outcomes}) == len(await world.rows()) == 5


async def test_a_retry_has_the_same_parameters_which_nobody_can_change(world: World) -> None:
    async def body(run: Run) -> Any:
        run.params["names"].append("mine")  # a copy of its own
        with pytest.raises(TypeError):
            run.params["names"] = []  # type: ignore[index]  # what is tried
        if run.attempt == 1:
            raise ValueError("once more")
        return run.params["names"]

    outcome = await world.runner().run_tick(
        one(body, params={"names": ["a"]}), TICK, origin="manual", asked=Asked({"names": ["b"]})
    )
    assert (outcome.attempt, outcome.result) == (2, ["b"])


async def test_a_server_takes_a_silent_run_by_hand_over_with_its_parameters(world: World) -> None:
    now = int(world.clock.now_ms())
    await world.ledger.begin(
        "one", own_tick(now), owner="gone", now_ms=now, lease_ms=0, max_attempts=3,
        origin="manual", params='{"n": 7}', asked_by="ann",
    )  # fmt: skip
    scheduler = Scheduler(
        [one(given, params={"n": 0}, catch_up_ms=3_600_000)], runner=world.runner(),
        locks=world.locks, ledger=world.ledger, clock=world.clock,
    )  # fmt: skip
    await scheduler.sweep()
    await until(lambda: _ended(scheduler))
    rows = [row for row in await world.rows() if row["origin"] == "manual"]
    assert [(row["attempt"], row["state"], row["asked_by"]) for row in rows] == [
        (2, "succeeded", "ann")
    ]
    assert json.loads(rows[0]["result"]) == {"n": 7}


async def _ended(scheduler: Scheduler) -> bool:
    return scheduler.running == 0


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_cancelled_run_by_hand_has_failed_unless_it_goes_on_elsewhere(
    world: World, goes_on: bool
) -> None:
    began = asyncio.Event()

    async def body(run: Run) -> None:
        began.set()
        await asyncio.sleep(60)

    asked = Asked({}, goes_on=goes_on)
    running = asyncio.create_task(
        world.runner().run_tick(one(body), TICK, origin="manual", asked=asked)
    )
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (row,) = await world.rows()
    wanted = ("running", None, 0) if goes_on else ("failed", "cancelled by who asked for it", None)
    lease = row["lease_until"] if goes_on else None
    assert (row["state"], row["error"], lease) == wanted


async def test_a_result_that_cannot_be_kept_fails_the_run_and_is_not_tried_again(
    world: World,
) -> None:
    async def body(run: Run) -> object:
        return object()

    outcome = await world.runner().run_tick(one(body), latest())
    assert (outcome.state, outcome.attempt) == ("failed", 1)
    assert "InvalidResult: it returned what is no JSON" in (outcome.reason or "")


async def test_progress_is_seen_while_the_run_goes_on_and_after_it(world: World) -> None:
    go_on = asyncio.Event()

    async def body(run: Run) -> None:
        for done in range(1000):
            run.progress(done, 1000, "b" * 300)
        await go_on.wait()
        run.progress(1000, 1000)
        for bad in (-1, float("nan"), 10**16):
            with pytest.raises(ValueError, match="give a number from 0"):
                run.progress(bad)

    running = asyncio.create_task(world.runner(lease_ms=600).run_tick(one(body), latest()))

    async def told() -> bool:
        rows = await world.rows()
        return bool(rows and rows[0]["progress"])

    await until(told)
    (row,) = await world.rows()
    assert json.loads(row["progress"]) == {"done": 999, "total": 1000, "note": "b" * 200}
    assert row["state"] == "running"
    go_on.set()
    await running
    (row,) = await world.rows()
    assert json.loads(row["progress"]) == {"done": 1000, "total": 1000, "note": ""}
    assert await world.ledger.heartbeat(RunKey("one", row["tick"], 1), 1000) is False


@dataclass
class Report:
    day: str
    stores: int


async def test_a_service_runs_a_function_by_hand_and_has_what_it_returned(
    environment: pytest.MonkeyPatch,
) -> None:
    cron = Solocron(load())

    @cron.job("0 3 * * *", params={"day": "today"})
    async def nightly_report(run: Run) -> Report:
        return Report(run.params["day"], 3)

    @cron.job("0 4 * * *")
    def plain(run: Run) -> int:
        return 5

    async with cron:
        outcome = await cron.run_job(nightly_report, {"day": "monday"}, by="a test")
        assert outcome.result == Report("monday", 3)
        assert outcome.counts == {"stores": 3}
        assert (await cron.run_job("nightly-report")).result == Report("today", 3)
        assert (await cron.run_job(plain)).result == 5
        with pytest.raises(InvalidInput, match="has no parameter 'dya': use of: day"):
            await cron.run_job(nightly_report, {"dya": "monday"})
        with pytest.raises(UnknownJob, match="given is no job's body"):
            await cron.run_job(given)
        rows = await cron.parts.ledger.history("nightly-report")
    assert json.loads(rows[-1]["result"]) == {"day": "monday", "stores": 3}
    assert rows[-1]["asked_by"] == "a test"


async def test_a_stop_waits_for_what_is_run_by_hand_then_cancels_it(
    environment: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    environment.setenv("SOLOCRON_GRACE", "0.2")
    begun, cron = asyncio.Queue[int](), Solocron(load())

    @cron.job("0 * * * *")
    async def slow(run: Run) -> None:
        begun.put_nowait(run.tick)
        await asyncio.Event().wait()

    await cron.start()
    by_hand = asyncio.create_task(cron.run_job(slow))
    first = await begun.get()
    await cron.stop()
    assert by_hand.cancelled() and redis_server.cli("GET", "cron:slow") == ""

    await cron.start()
    now = datetime.now(UTC)
    past = asyncio.create_task(cron.backfill("slow", now - timedelta(hours=2), now))
    second = await begun.get()
    await cron.stop()
    assert past.cancelled() and redis_server.cli("GET", "cron:slow") == ""
    states = {row["tick"]: row["state"] for row in await cron.parts.ledger.history("slow")}
    assert states == {first: "failed", second: "running"}  # given back
    await cron.parts.close()


async def test_nothing_is_run_by_hand_while_the_service_is_not_started(
    environment: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    cron, now = Solocron(load()), datetime.now(UTC)
    cron.add(one(given))
    for _ in range(2):
        with pytest.raises(ConfigError, match="start the service"):
            await cron.run_job("one")
        with pytest.raises(ConfigError, match="start the service"):
            await cron.backfill("one", now - timedelta(minutes=3), now)
        async with cron:
            await cron.drain()
            with pytest.raises(ConfigError, match="the service stops"):
                await cron.run_job("one")
    assert "cron:one" not in redis_server.cli("KEYS", "*").split()
