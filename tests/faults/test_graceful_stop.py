"""SIGTERM: what runs is finished or handed over, clients hear the last of it, nothing is left."""

from __future__ import annotations

import asyncio
import signal

import pytest
from sqlalchemy import select

from clients import Listener, connected, subscribe
from conftest import RedisServer
from shops import own_stores
from solocron.clock import SystemClock
from solocron.service import Solocron
from solocron.settings import load
from solocron.storage.engine import Database
from solocron.storage.tables import job_runs
from solocron.stores.model import Store
from workers import Worker, effects, prepare, table_locked, until, wall_ms

SWEEP_S = 0.5
REMINDER = "cron:store-open-reminder"


async def with_store(url: str) -> Database:
    database = await prepare(url)
    now = int(SystemClock().now_ms())
    await own_stores(database).put(Store("42", "Mitte", "UTC", "24/7"), now)
    return database


async def ticks_after(database: Database, ms: float) -> list[int]:
    async with database.connect() as connection:
        query = select(job_runs.c.tick).where(job_runs.c.tick > ms)
        return list((await connection.execute(query)).scalars())


async def test_a_run_within_the_grace_finishes_and_clients_hear_of_it_first(
    redis_server: RedisServer, postgres_url: str
) -> None:
    database = await with_store(postgres_url)
    worker = await Worker.start(
        redis=redis_server.url, database=postgres_url, sweep=SWEEP_S, grace=30,
        store_open_reminder_schedule="*/3 * * * * *",
    )  # fmt: skip
    listener = Listener()

    async def running() -> bool:
        return redis_server.cli("EXISTS", REMINDER) == "1"

    async def idle() -> bool:
        return not await running()

    try:
        async with connected(worker.port) as ws, asyncio.timeout(40):
            await subscribe(ws, {"42": None})
            await listener.listen(ws, 1)
            await until(idle)  # the run it heard of is over
            async with table_locked(postgres_url):
                await until(running)
                signalled = wall_ms()
                worker.signal(signal.SIGTERM)
                # The server is closed to newcomers once it drains; the job still waits.
                await until(lambda: refused(worker.port))
                heard = len(listener.events)
                assert await running() and not ws.closed
            await listener.listen(ws)  # to the end of the connection
            assert ws.close_code == 1001
        assert len(listener.events) == heard + 1
        seqs = listener.seqs["42"]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    finally:
        await worker.stop()
    assert worker.process.returncode == 0
    assert await ticks_after(database, signalled) == []
    assert redis_server.cli("KEYS", "cron:*") == redis_server.cli("KEYS", "*:alive") == ""
    await database.close()


async def refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


async def test_sockets_are_closed_with_a_time_to_reconnect_after(
    redis_server: RedisServer, sqlite_url: str
) -> None:
    database = await with_store(sqlite_url)
    worker = await Worker.start(redis=redis_server.url, database=sqlite_url)
    reasons = []
    async with connected(worker.port) as one, connected(worker.port) as other:
        for ws in (one, other):
            await subscribe(ws, {"42": None})
        worker.signal(signal.SIGTERM)
        for ws in (one, other):
            async with asyncio.timeout(10):
                message = await ws.receive()
            reasons.append((ws.close_code, message.extra))
    await worker.stop()
    for code, reason in reasons:
        name, _, after = str(reason).partition("=")
        assert (code, name) == (1001, "reconnect-after-ms")
        assert 0 <= int(after) < 5000
    await database.close()


async def test_a_run_beyond_the_grace_is_handed_over_at_once(
    redis_server: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)

    async def start(name: str, body_ms: int, grace: float) -> Worker:
        return await Worker.start(
            redis=redis_server.url, database=database_url, sweep=SWEEP_S, lease=30, grace=grace,
            job={"name": name, "body_ms": body_ms, "schedule": "*/5 * * * * *", "overlap": "skip"},
        )  # fmt: skip

    owner = await start("owner", 600_000, 0.3)
    tick = (await owner.saw(lambda event: event["event"] == "start"))["tick"]
    survivor = await start("survivor", 5, 30)
    try:
        signalled = wall_ms()
        owner.signal(signal.SIGTERM)
        again = await survivor.saw(lambda event: event.get("tick") == tick)
        took = (wall_ms() - signalled) / 1000
        assert again["attempt"] == 2
        assert took < 0.3 + 1.2 * SWEEP_S + 2, "not at once"

        async def written() -> bool:
            return bool(await effects(database))

        await until(written)
        await owner.process.wait()
        assert owner.process.returncode == 0
    finally:
        await asyncio.gather(owner.stop(), survivor.stop())
    assert [row for row in await effects(database) if row[0] == tick] == [(tick, "survivor")]
    assert redis_server.cli("KEYS", "cron:*") == redis_server.cli("KEYS", "*:alive") == ""
    await database.close()


async def test_no_tick_begins_after_the_signal(redis_server: RedisServer, sqlite_url: str) -> None:
    database = await prepare(sqlite_url)
    worker = await Worker.start(
        redis=redis_server.url, database=sqlite_url, sweep=0.1, grace=30,
        job={"name": "w", "body_ms": 3000, "overlap": "skip"},
        store_open_reminder_schedule="* * * * * *",
    )  # fmt: skip
    await worker.saw(lambda event: event["event"] == "start")

    async def between_ticks() -> bool:
        return 200 < wall_ms() % 1000 < 700

    await until(between_ticks)
    signalled = wall_ms()
    worker.signal(signal.SIGTERM)
    await worker.stop()
    assert await ticks_after(database, signalled) == []  # of either job
    assert [event["event"] for event in worker.events] == ["ready", "start", "stopped"]
    assert len(await effects(database)) == 1
    await database.close()


@pytest.mark.parametrize("web", [False, True], ids=["jobs", "served"])
async def test_a_start_cancelled_at_any_moment_leaves_nothing(
    environment: pytest.MonkeyPatch, redis_server: RedisServer, web: bool
) -> None:
    environment.setenv("SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE", "* * * * * *")

    async def run(cron: Solocron) -> None:
        async with cron.serving() if web else cron:
            await asyncio.Event().wait()

    for turns in range(60):
        cron = Solocron(load())
        task = asyncio.create_task(run(cron))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns >= 30:  # where it waits for Redis and the database
            await asyncio.sleep((turns - 30) / 500)
        task.cancel()
        await asyncio.wait([task], timeout=20)
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}, turns

    async def alone() -> bool:  # redis-cli's own connection is the only one
        return len(redis_server.cli("CLIENT", "LIST").splitlines()) == 1

    await until(alone)
    assert redis_server.cli("KEYS", "cron:*") == ""
