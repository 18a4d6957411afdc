"""A move from the original system: its servers, in Node, and ours on one Redis, with the same keys.

What ran is counted by a list in Redis that every body, theirs and ours, puts its tick into.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from conftest import RedisServer
from original import NodeServer
from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.service import Solocron
from solocron.settings import load
from workers import NEVER, Worker, effects, prepare, until, wall_ms

AUTO_CLOSE = "cron:store-auto-close"
WITNESS = "witness"
TICKS = 200
START = 1_800_000_000_000
THEIR_BODY_MS = 150
PERIOD_MS = 400  # between two ticks, which are a second apart by the workers' clocks


@asynccontextmanager
async def stopped_at_the_end() -> AsyncIterator[list[Worker]]:
    servers: list[Worker] = []
    try:
        yield servers
    finally:
        await asyncio.gather(*(each.stop() for each in servers))


@pytest.fixture
async def theirs(redis_server: RedisServer) -> AsyncIterator[NodeServer]:
    """One of their servers; its auto-close does nothing until it is told to."""
    async with stopped_at_the_end() as servers:
        server = await NodeServer.launch(redis_server.url, key=AUTO_CLOSE, witness=WITNESS)
        servers.append(server)
        yield server


@pytest.fixture
async def ours(environment: pytest.MonkeyPatch) -> AsyncIterator[list[Solocron]]:
    """Two of our servers, whose schedules and sweeps do nothing by themselves."""
    environment.setenv("SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE", NEVER)
    environment.setenv("SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE", NEVER)
    environment.setenv("SOLOCRON_SWEEP", "3600")
    environment.setenv("SOLOCRON_LEASE", "1")
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(2):
            cron = Solocron(load())
            await cron.parts.database.migrate()
            servers.append(await stack.enter_async_context(cron))
        yield servers


def now_ms() -> int:
    return int(time.time() * 1000)


async def try_tick(cron: Solocron, tick: int, origin: str = "schedule") -> Outcome:
    """Our store auto-close, at a tick."""
    return await cron.parts.runner.run_tick(cron.jobs["store-auto-close"], tick, origin=origin)


def auto_close(body: Any) -> Job:
    """A job of the same name and lock with another body."""
    return Job(name="store-auto-close", calendar=Calendar(NEVER), body=body, ttl_ms=60_000)


async def over(server: NodeServer, tick: int) -> None:
    """Wait until their run has ended."""
    await server.saw(lambda each: each["event"] == "end" and each["tick"] == tick)


@pytest.mark.parametrize("by", ["REDIS_URL", "REDIS_HOST"])
async def test_their_locks_and_ours_exclude_each_other_in_the_same_environment(
    own_redis: RedisServer, environment: pytest.MonkeyPatch, by: str
) -> None:
    password = "s/ecret?#@"
    if by == "REDIS_URL":
        variables = {"REDIS_URL": own_redis.url}
    else:
        own_redis.cli("config", "set", "requirepass", password)
        variables = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(own_redis.port),
                     "REDIS_PASSWORD": password}  # fmt: skip
    environment.delenv("REDIS_URL")
    for name, value in variables.items():
        environment.setenv(name, value)
    cron = Solocron.from_env()
    async with stopped_at_the_end() as servers, cron.parts.locks as locks:
        node = await NodeServer.launch(variables, key=AUTO_CLOSE, witness=WITNESS)
        servers.append(node)
        await node.run(1, body_ms=60_000)
        assert await locks.is_locked(AUTO_CLOSE)
        assert not await locks.acquire_lock(AUTO_CLOSE, 60_000)
        assert (await try_tick(cron, now_ms())).reason == "held"
        await locks.unlock(AUTO_CLOSE)
        assert await locks.acquire_lock(AUTO_CLOSE, 60_000)
        await node.order(is_locked=True)
        assert (await node.saw(lambda each: each["event"] == "is-locked"))["locked"]
        await node.run(2)
        assert node.did(2) == ["skipping"]
        assert await locks.release_lock(AUTO_CLOSE)
        await node.run(3)
        assert node.did(3)[0] == "start"


async def test_a_tick_that_was_met_running_at_theirs_is_done_once_they_freed_it(
    ours: list[Solocron], theirs: NodeServer
) -> None:
    """However often a sweep looks at it; the next tick is anybody's."""
    tick = now_ms()
    await theirs.run(tick, body_ms=300)
    assert {(await try_tick(each, tick)).reason for each in ours} == {"held"}
    await over(theirs, tick)
    assert {(await try_tick(each, tick, "sweep")).reason for each in ours} == {"done"}
    outcomes = [await try_tick(each, tick + 1) for each in ours]
    assert [each.state for each in outcomes] == ["succeeded", "skipped"]


async def test_the_key_of_their_server_that_crashed_is_honoured_for_its_whole_ttl(
    ours: list[Solocron], theirs: NodeServer, redis_server: RedisServer
) -> None:
    tick, ttl_ms = now_ms(), 1500
    await theirs.run(tick, body_ms=60_000, ttl_ms=ttl_ms)
    locked_at = time.monotonic()
    await theirs.kill()
    outcomes = [await try_tick(ours[0], tick)]

    async def ran() -> bool:
        outcomes.append(await try_tick(ours[0], tick, "sweep"))
        return outcomes[-1].state == "succeeded"

    await until(ran)
    assert time.monotonic() - locked_at > ttl_ms / 1000 - 0.1
    assert {each.reason for each in outcomes[:-1]} == {"held"}
    assert (await try_tick(ours[1], tick, "sweep")).reason == "done"


async def test_their_delete_of_our_lock_is_noticed_and_the_tick_is_done_once(
    ours: list[Solocron], theirs: NodeServer
) -> None:
    """Their run takes longer than its TTL; by its end it deletes a lock that is ours."""
    database = ours[0].parts.database
    async with database.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (tick BIGINT, worker VARCHAR(20))"))
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def write(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(
                text("INSERT INTO effects VALUES (:tick, :by)"),
                {"tick": run.tick, "by": str(run.attempt)},
            )

    async def slow(run: Run) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        await write(run)

    await theirs.run(1, body_ms=1500, ttl_ms=100)
    tick = now_ms() + 1000
    one, other = (each.parts.runner for each in ours)

    async def mine() -> Outcome:
        while (outcome := await one.run_tick(auto_close(slow), tick)).reason == "held":
            await asyncio.sleep(0.02)
        return outcome

    running = asyncio.create_task(mine())
    await begun.wait()
    await over(theirs, 1)  # and our lock is gone
    meanwhile = await other.run_tick(auto_close(write), tick)
    assert (meanwhile.state, meanwhile.reason) == ("skipped", "held") or cancelled.is_set()
    lost = await running
    assert cancelled.is_set() and lost.state == "lost"
    assert await effects(database) == []

    async def taken_over() -> bool:
        outcome = await other.run_tick(auto_close(write), tick, origin="ledger")
        return outcome.state == "succeeded" or outcome.reason == "done"

    await until(taken_over)
    assert await effects(database) == [(tick, "2")]


async def told(redis: RedisServer) -> list[tuple[int, str]]:
    """(tick, server) of every run that the witness counted."""
    lines = await asyncio.to_thread(redis.cli, "lrange", WITNESS, "0", "-1")
    return [(int(tick), name) for tick, name in map(str.split, lines.splitlines())]


class Fleet:
    """Their servers and ours, on one schedule: tick n is due `PERIOD_MS` after the one before.

    Their runs last longer than their clocks differ, as they must: they would run a tick twice.
    """

    def __init__(self, redis: RedisServer, database: str, body_ms: int, **settings: Any) -> None:
        self.anchor_ms = wall_ms() + 4000
        self._redis, self._database, self._body_ms = redis, database, body_ms
        self._settings = settings

    async def node(self, name: str, late_ms: int = 0) -> NodeServer:
        return await NodeServer.launch(
            self._redis.url, key="cron:tick-test", witness=WITNESS, name=name, late_ms=late_ms,
            body_ms=THEIR_BODY_MS, anchor_ms=self.anchor_ms, start_ms=START,
            period_ms=PERIOD_MS, step_ms=1000,
        )  # fmt: skip

    async def worker(self, name: str, late_ms: int = 0) -> Worker:
        rate = 1000 / PERIOD_MS
        return await Worker.start(
            redis=self._redis.url, database=self._database, sweep=0.5, **self._settings,
            clock={"anchor_ms": self.anchor_ms, "start_ms": START, "rate": rate,
                   "skew_ms": -late_ms * rate},
            job={"name": name, "witness": WITNESS, "body_ms": self._body_ms},
        )  # fmt: skip

    async def half_past(self, number: int) -> None:
        """Wait until midway between tick `number` and the next: nothing runs then."""
        due_ms = self.anchor_ms + (number + 0.5) * PERIOD_MS
        await asyncio.sleep(max(0.0, (due_ms - wall_ms()) / 1000))

    async def once_each(self, ticks: int) -> Counter[str]:
        """How many of the first `ticks` ticks each kind of server ran: each must have run once."""
        ran = [(t, who) for t, who in await told(self._redis) if t < START + ticks * 1000]
        counted = Counter((tick - START) // 1000 for tick, _ in ran)
        assert [(tick, n) for tick, n in counted.items() if n > 1] == [], "run more than once"
        assert [tick for tick in range(ticks) if tick not in counted] == [], "not run"
        return Counter(who.rstrip("0123456789") for _, who in ran)


@pytest.mark.alone
@pytest.mark.timeout(240)
async def test_a_rolling_move_runs_200_ticks_once_each_though_our_jobs_take_milliseconds(
    own_redis: RedisServer, sqlite_url: str
) -> None:
    """Their servers and ours come to a tick up to 40 ms late: a tick of 5 ms is over by then."""
    database = await prepare(sqlite_url)
    await database.close()
    fleet = Fleet(own_redis, sqlite_url, body_ms=5, reserve=0.15)
    async with stopped_at_the_end() as servers:
        theirs = [await fleet.node(f"node{n}", late_ms=20 * n) for n in range(3)]
        servers += theirs
        await fleet.half_past(60)
        servers += (first := await fleet.worker("w1"), second := await fleet.worker("w2", 20))
        await fleet.half_past(100)
        await theirs[0].stop()
        servers.append(await fleet.worker("w3", 40))
        await fleet.half_past(120)
        await first.kill()
        await theirs[1].stop()
        await fleet.half_past(140)
        await second.stop()
        servers.append(await fleet.worker("w4"))
        await fleet.half_past(160)
        await theirs[2].stop()
        await fleet.half_past(TICKS)
    ran = await fleet.once_each(TICKS)
    assert ran["node"] >= 60 and ran["w"] >= 80, ran


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_a_mixed_fleet_runs_ticks_once_each_while_jobs_last_longer_than_clocks_differ(
    own_redis: RedisServer, sqlite_url: str
) -> None:
    """Without SOLOCRON_RESERVE, as in the original by itself."""
    database = await prepare(sqlite_url)
    await database.close()
    fleet, ticks = Fleet(own_redis, sqlite_url, body_ms=THEIR_BODY_MS), 50
    async with stopped_at_the_end() as servers:
        servers += [await fleet.node(f"node{n}", 20 * n) for n in range(2)]
        servers += [await fleet.worker(f"w{n}", 20 * n) for n in range(2)]
        await fleet.half_past(ticks)
    ran = await fleet.once_each(ticks)
    assert ran["node"] and ran["w"], ran
