"""SQLite's disk is full, or another process keeps its write lock: runs wait or are tried again,
and nothing is half done."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.locks.manager import LockManager
from solocron.storage import engine
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from workers import Worker, effects, prepare, table_locked, until

CALENDAR = Calendar("* * * * *")
PLENTY = 1_000_000
SMALL_FILE = 65_536


async def write(connection: AsyncConnection, run: Run, what: str, count: int = 1) -> None:
    statement = text("INSERT INTO effects (tick, worker) VALUES (:tick, :what)")
    await connection.execute(statement, [{"tick": run.tick, "what": what}] * count)


class World:
    """A server on a database that may be given only so many pages."""

    def __init__(self, database: Database, locks: LockManager) -> None:
        self.database = database
        self.runner = Runner(
            locks=locks, ledger=RunLedger(database), clock=SystemClock(), owner="w", lease_ms=5000
        )

    async def run(self, body: Body) -> Outcome:
        tick = CALENDAR.latest_at(SystemClock().now_ms())
        assert tick is not None
        return await self.runner.run_tick(
            Job(name="one", calendar=CALENDAR, body=body, backoff_ms=1), tick
        )

    async def give_pages(self, count: int) -> None:
        """Let the file grow to `count` pages and no further, on every connection."""
        async with self.database.connect() as connection:
            used = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
            limit = used + count
            event.listen(
                connection.engine.sync_engine, "engine_connect",
                lambda each: each.exec_driver_sql(f"PRAGMA max_page_count = {limit}"),
            )  # fmt: skip


@pytest.fixture
async def world(
    redis_server: RedisServer, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 200)
    database = await prepare(sqlite_url)
    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        yield World(database, locks)
    await database.close()


async def test_a_run_on_a_full_disk_is_tried_again_and_leaves_nothing_half_done(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(run: Run) -> None:
        await world.give_pages(2 if run.attempt == 1 else PLENTY)
        async with run.transaction() as connection:
            await write(connection, run, f"a{run.attempt}")
            await write(connection, run, f"b{run.attempt}", 5000)

    outcome = await world.run(body)
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)
    rows = [what for _, what in await effects(world.database)]
    assert sorted(set(rows)) == ["a2", "b2"]
    assert len(rows) == 5001
    assert "database or disk is full" in caplog.text


async def test_a_run_whose_disk_stays_full_fails_with_the_reason(world: World) -> None:
    async def body(run: Run) -> None:
        await world.give_pages(2)
        async with run.transaction() as connection:
            await write(connection, run, "never", 5000)

    outcome = await world.run(body)
    assert (outcome.state, outcome.attempt) == ("failed", 3)
    assert "StorageUnavailable" in (outcome.reason or "")
    assert "database or disk is full" in (outcome.reason or "")
    assert await effects(world.database) == []


async def test_a_writer_that_keeps_the_lock_makes_a_tick_wait_which_then_runs_once(
    world: World, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(run: Run) -> None:
        async with run.transaction() as connection:
            await write(connection, run, "w")

    async with table_locked(sqlite_url):
        for _ in range(2):
            outcome = await world.run(body)
            assert (outcome.state, outcome.reason) == ("skipped", "database-down")
            assert "database is locked" in outcome.detail
    said = [each for each in caplog.messages if "cron waits for the database" in each]
    assert len(said) == 1
    assert "database is locked" in said[0]
    outcome = await world.run(body)
    assert (outcome.state, outcome.attempt) == ("succeeded", 1)
    assert (await world.run(body)).reason == "done"
    assert len(await effects(world.database)) == 1


async def test_a_writer_that_takes_the_lock_in_mid_run_fails_one_attempt(
    world: World, sqlite_url: str
) -> None:
    locked = table_locked(sqlite_url)

    async def body(run: Run) -> None:
        if run.attempt == 1:
            await locked.__aenter__()
        try:
            async with run.transaction() as connection:
                await write(connection, run, "w")
        finally:
            if run.attempt == 1:
                await locked.__aexit__(None, None, None)

    outcome = await world.run(body)
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)
    assert len(await effects(world.database)) == 1


# -- a service -----------------------------------------------------------------------------


async def start(redis: RedisServer, url: str, log: Path, name: str = "w") -> Worker:
    return await Worker.start(
        redis=redis.url, database=url, sweep=0.3, log=log,
        job={"name": name, "schedule": "* * * * * *"},
    )  # fmt: skip


async def ticks_after(database: Database, tick: int, count: int) -> None:
    async def enough() -> bool:
        return len([each for each, _ in await effects(database) if each > tick]) >= count

    await until(enough)


async def assert_each_tick_once(database: Database) -> None:
    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))


async def test_a_service_whose_disk_is_full_lives_and_catches_up_when_there_is_space(
    redis_server: RedisServer, sqlite_url: str, tmp_path: Path
) -> None:
    """A file size that the kernel refuses to exceed stands for the full disk."""
    database = await prepare(sqlite_url)
    async with database.begin() as connection:  # more than the limit, in the file and its log
        await connection.execute(text("CREATE TABLE filler (x BLOB)"))
        await connection.execute(text("INSERT INTO filler VALUES (zeroblob(200000))"))
    worker = await start(redis_server, sqlite_url, tmp_path / "log")
    try:
        await ticks_after(database, 0, 2)
        _, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (SMALL_FILE, hard))

        async def refused() -> bool:
            return "disk I/O error" in (tmp_path / "log").read_text()

        await until(refused)
        last = (await effects(database))[-1][0]
        await asyncio.sleep(3)  # several ticks
        assert (await effects(database))[-1][0] == last
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{worker.port}/healthz") as response,
        ):
            assert response.status == 200
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await ticks_after(database, last, 5)
        assert worker.process.returncode is None
    finally:
        await worker.stop()
    await assert_each_tick_once(database)
    assert len((tmp_path / "log").read_text().splitlines()) < 100
    await database.close()


async def test_two_services_beside_a_long_writer_run_each_tick_once(
    redis_server: RedisServer, sqlite_url: str, tmp_path: Path
) -> None:
    database = await prepare(sqlite_url)
    workers = [await start(redis_server, sqlite_url, tmp_path / f"{n}", f"w{n}") for n in range(2)]
    try:
        await ticks_after(database, 0, 2)
        async with table_locked(sqlite_url):
            await asyncio.sleep(engine.BUSY_TIMEOUT_MS / 1000 + 2)
            last = (await effects(database))[-1][0]
        await ticks_after(database, last, 10)
    finally:
        await asyncio.gather(*(each.stop() for each in workers))
    await assert_each_tick_once(database)
    await database.close()


async def test_a_close_that_was_given_up_ends_all_the_same(sqlite_url: str) -> None:
    """As the pool does when a thread is busy: it stops it, and the close under way is cancelled."""
    database = await prepare(sqlite_url)
    async with database._engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        busy = threading.Event()
        driver._tx.put_nowait((None, busy.wait))
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)
        driver.stop()
        closing.cancel()
        await asyncio.sleep(0)  # it waits for the end now
        busy.set()
        done, _ = await asyncio.wait([closing], timeout=5)
        assert done
        await connection.invalidate()
    await database.close()
