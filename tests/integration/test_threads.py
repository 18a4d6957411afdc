"""Bodies that are plain functions: they run in threads, and a lost lease ends them by asking."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import text

from conftest import RedisServer
from run_world import CALENDAR, latest
from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.errors import LeaseLost
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from workers import effects, prepare

LEASE_MS = 1500


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await prepare(database_url)
    yield database
    await database.close()


def work_on(run: Run) -> None:
    """What a body does until its lease is lost."""
    while True:
        run.ensure_leased()
        time.sleep(0.01)


class Server:
    """A server on a real Redis and database. `ran` is what its bodies noted, in order."""

    def __init__(self, database: Database, redis: RedisServer, locks: LockManager) -> None:
        self.database, self.redis = database, redis
        self.ledger = RunLedger(database)
        self.locks = locks
        self.tick = latest()
        self.ran: list[str] = []

    async def run(self, body: Callable[[Run], Any], grace_s: float = 5, **options: Any) -> Outcome:
        runner = Runner(
            locks=self.locks, ledger=self.ledger, clock=SystemClock(), owner="w",
            lease_ms=LEASE_MS, grace_s=grace_s,
        )  # fmt: skip
        one = Job(name="one", calendar=CALENDAR, body=body, backoff_ms=1, **options)
        async with asyncio.timeout(30):
            return await runner.run_tick(one, self.tick)

    async def row(self) -> dict[str, Any]:
        (row,) = await self.ledger.history("one")
        return row


@pytest.fixture
async def server(database: Database, redis_server: RedisServer) -> AsyncIterator[Server]:
    async with LockManager(redis_server.url, lease_ms=LEASE_MS) as locks:
        yield Server(database, redis_server, locks)


async def _write(run: Run, what: str) -> None:
    async with run.transaction() as connection:
        row = {"tick": run.tick, "what": what}
        await connection.execute(
            text("INSERT INTO effects (tick, worker) VALUES (:tick, :what)"), row
        )


FLAVOUR: contextvars.ContextVar[str] = contextvars.ContextVar("flavour", default="none")


async def test_a_plain_function_runs_in_a_thread_with_context_and_longer_than_its_lease(
    server: Server,
) -> None:
    threads: list[int] = []

    def body(run: Run) -> dict[str, Any]:
        threads.append(threading.get_ident())
        until = time.monotonic() + 2 * LEASE_MS / 1000
        while time.monotonic() < until:
            run.ensure_leased()
            time.sleep(0.05)
        run.call(_write(run, FLAVOUR.get()))
        return {"attempt": run.attempt, "day": run.params["day"]}

    FLAVOUR.set("mint")
    outcome = await server.run(body, params={"day": "today"})
    assert (outcome.state, outcome.result) == ("succeeded", {"attempt": 1, "day": "today"})
    assert threads != [threading.get_ident()]
    assert [what for _, what in await effects(server.database)] == ["mint"]


async def test_what_a_thread_raises_is_a_failed_attempt_that_is_tried_again(
    server: Server,
) -> None:
    def body(run: Run) -> int:
        if run.attempt == 1:
            raise SystemExit("no")  # would end the event loop
        if run.attempt == 2:
            raise StopIteration
        return run.attempt

    assert (await server.run(body)).result == 3


async def test_a_run_is_lost_only_once_its_thread_has_ended(server: Server) -> None:
    began = threading.Event()

    def body(run: Run) -> None:
        began.set()
        try:
            work_on(run)
        except LeaseLost:
            time.sleep(0.7)  # to put its things away
            server.ran.append("ended")
            raise

    running = asyncio.create_task(server.run(body))
    await asyncio.to_thread(began.wait, 10)
    server.redis.cli("del", "cron:one")
    outcome = await running
    assert (outcome.state, server.ran) == ("lost", ["ended"])
    assert (await server.row())["state"] == "running"  # for another server to take over


async def test_a_thread_that_does_not_end_is_given_up_and_can_write_no_more(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def body(run: Run) -> None:
        began.set()
        go_on.wait(20)
        try:
            run.call(_write(run, "late"))
        except LeaseLost:
            server.ran.append("refused")

    running = asyncio.create_task(server.run(body, grace_s=0.5))
    await asyncio.to_thread(began.wait, 10)
    server.redis.cli("del", "cron:one")
    assert (await running).state == "lost"
    assert server.ran == [] and "does not end" in caplog.text
    taken = await server.run(lambda run: run.call(_write(run, "next")))
    assert (taken.state, taken.attempt) == ("succeeded", 2)
    go_on.set()
    async with asyncio.timeout(10):
        while not server.ran:
            await asyncio.sleep(0.01)
    assert [what for _, what in await effects(server.database)] == ["next"]


async def test_a_frozen_redis_ends_the_thread_by_its_deadline(
    database: Database, own_redis: RedisServer
) -> None:
    async with LockManager(own_redis.url, lease_ms=LEASE_MS, deadline_s=0.2) as locks:
        server = Server(database, own_redis, locks)
        began = threading.Event()

        def body(run: Run) -> None:
            began.set()
            work_on(run)

        running = asyncio.create_task(server.run(body))
        await asyncio.to_thread(began.wait, 10)
        own_redis.pause()
        outcome = await running
        own_redis.resume()
    assert outcome.state == "lost"


async def test_a_stop_asks_the_thread_to_end_and_gives_the_run_back(server: Server) -> None:
    began = threading.Event()

    def body(run: Run) -> None:
        began.set()
        try:
            work_on(run)
        finally:
            server.ran.append("ended")

    running = asyncio.create_task(server.run(body))
    await asyncio.to_thread(began.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.ran == ["ended"]
    assert (await server.row())["lease_until"] == 0
    assert not await server.locks.is_locked("cron:one")


async def test_call_is_for_threads_alone(server: Server) -> None:
    async def body(run: Run) -> None:
        run.call(_write(run, "no"))

    outcome = await server.run(body, attempts=1)
    assert "run.call is for bodies in threads" in (outcome.reason or "")


async def test_a_function_that_hands_back_a_coroutine_is_awaited(server: Server) -> None:
    async def later(run: Run) -> int:
        return 7

    assert (await server.run(lambda run: later(run))).result == 7


async def test_a_thread_whose_run_is_lost_between_its_attempts_leaves_none_behind(
    server: Server,
) -> None:
    before = threading.active_count()
    outcomes = [await server.run(lambda run: None) for _ in range(3)]
    assert [each.reason for each in outcomes[1:]] == ["done", "done"]
    async with asyncio.timeout(10):
        while threading.active_count() > before:
            await asyncio.sleep(0.01)
