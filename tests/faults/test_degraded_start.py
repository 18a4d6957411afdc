"""A service that starts without Redis, without its database, or without both: it says so once,
does what it can, and is whole again by itself when they come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from clients import Listener, connected, subscribe
from conftest import RedisServer
from proxy import Proxy
from solocron.storage.engine import Database
from workers import Worker, effects, prepare, until

SWEEP_S = 0.3
TIMES = 4
STORE = {"name": "Mitte", "timezone": "UTC", "hours": "24/7"}
NO_LOCKS = "Redis lost for distributed locks"
NO_NEWS = "Redis lost for notifications"
NO_DATABASE = "Database lost"
NO_RUNS = "The store open reminder cron waits for the database, skipping: "
NOT_MIGRATED = "is not migrated: run `solocron migrate`"


async def call(worker: Worker, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, f"http://127.0.0.1:{worker.port}{path}", **options) as response,
    ):
        return response.status, await response.json()


def warnings(log: Path) -> list[str]:
    lines = log.read_text().splitlines()
    told = [line for line in lines if line.startswith(("WARNING", "ERROR", "CRITICAL", "Trace"))]
    return [line for line in told if ":solocron.alerts:" not in line]  # those come, too


@asynccontextmanager
async def pair(
    tmp_path: Path, redis: RedisServer, database: str
) -> AsyncIterator[tuple[list[Worker], list[Path]]]:
    """Two workers that remind every other second, and their logs."""
    logs = [tmp_path / f"worker-{n}.log" for n in range(2)]
    workers: list[Worker] = []
    try:
        for log in logs:
            workers.append(
                await Worker.start(
                    redis=redis.url, database=database, log=log, sweep=SWEEP_S, redis_deadline=0.3,
                    store_open_reminder_schedule="*/2 * * * * *",
                )
            )  # fmt: skip
        yield workers, logs
    finally:
        await asyncio.gather(*(each.stop() for each in workers))


async def assert_said_once(logs: list[Path], expected: list[str]) -> None:
    """Several sweeps long, each worker says each of `expected` once, and complains of no more."""

    async def said() -> bool:
        return all(text in log.read_text() for log in logs for text in expected)

    await until(said)
    await asyncio.sleep(8 * SWEEP_S)  # in which it could say it again
    for log in logs:
        lines = warnings(log)
        assert len(lines) == len(expected), lines
        for text in expected:
            assert sum(text in line for line in lines) == 1, lines


async def assert_whole(workers: list[Worker], redis: RedisServer) -> None:
    """Both are ready without a restart; each tick reminds once, on either server."""

    async def ready() -> bool:
        answers = await asyncio.gather(*(call(each, "GET", "/readyz") for each in workers))
        return all(status == 200 and body["redis"] == "up" for status, body in answers)

    await until(ready)
    assert (await call(workers[0], "PUT", "/api/v1/stores/42", json=STORE))[0] in (200, 201)
    listeners = await asyncio.gather(*(reminded(each) for each in workers))
    for listener in listeners:
        ticks = [event["data"]["tick"] for event in listener.events]
        assert len(set(ticks)) == len(ticks) == TIMES
        # The first may have been caught up late, over the next one.
        moments = [datetime.fromisoformat(tick) for tick in ticks[1:]]
        assert {(b - a).total_seconds() for a, b in pairwise(moments)} == {2.0}, ticks
        seqs = listener.seqs["42"]
        assert seqs == list(range(seqs[0], seqs[0] + TIMES))


async def reminded(worker: Worker) -> Listener:
    """What a client on that worker hears of the next reminders."""
    listener = Listener()
    async with connected(worker.port) as ws, asyncio.timeout(30):
        await subscribe(ws, {"42": None})
        await listener.listen(ws, TIMES)
    return listener


async def assert_serves_without_database(worker: Worker) -> None:
    status, body = await call(worker, "GET", "/readyz")
    assert (status, body["database"]) == (503, "down")
    assert (await call(worker, "GET", "/healthz"))[0] == 200
    assert (await call(worker, "GET", "/api/v1/stores"))[0] == 503
    async with connected(worker.port) as ws, asyncio.timeout(20):
        await ws.send_json({"type": "subscribe", "stores": {"42": None}})
        answer = await ws.receive_json()
        assert (answer["type"], answer["code"]) == ("error", "unavailable")


async def migrated(url: str) -> None:
    database = Database(url)
    await database.migrate()
    await database.close()


@pytest.fixture
def late_redis(tmp_path: Path) -> Any:
    """A redis-server that is not started yet."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


async def test_without_redis_the_ledger_decides_and_clients_hear(
    late_redis: RedisServer, database_url: str, tmp_path: Path
) -> None:
    await migrated(database_url)
    async with pair(tmp_path, late_redis, database_url) as (workers, logs):
        await assert_said_once(logs, [NO_LOCKS, NO_NEWS])
        status, body = await call(workers[0], "GET", "/readyz")
        assert (status, body["redis"]) == (200, "down")
        await call(workers[0], "PUT", "/api/v1/stores/42", json=STORE)
        for heard in await asyncio.gather(*(reminded(each) for each in workers)):
            ticks = [event["data"]["tick"] for event in heard.events]
            assert len(set(ticks)) == len(ticks)
        late_redis.start()
        await assert_whole(workers, late_redis)
    for log in logs:
        assert log.read_text().count("Redis ready for distributed locks") == 1
        told = [each for each in warnings(log) if "its lock" not in each]  # but for the alarm
        assert len(told) == 2


async def test_without_postgres_runs_wait_for_it(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    await migrated(postgres_url)
    async with Proxy.to_postgres(postgres_url) as proxy:
        await proxy.down()
        url = proxy.postgres_url(postgres_url)
        async with pair(tmp_path, redis_server, url) as (workers, logs):
            await assert_said_once(logs, [NO_DATABASE])
            await assert_serves_without_database(workers[0])
            await proxy.up()
            await assert_whole(workers, redis_server)
    for log in logs:
        assert log.read_text().count("Database ready again") == 1
        assert len(warnings(log)) == 1


async def test_without_the_folder_of_its_file_runs_wait_for_it(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    folder = tmp_path / "later"
    async with pair(tmp_path, redis_server, f"sqlite:///{folder}/it.db") as (workers, logs):
        await assert_said_once(logs, [NO_DATABASE])
        assert f"there is no folder {folder}: create it" in logs[0].read_text()
        await assert_serves_without_database(workers[0])
        folder.mkdir()
        await assert_whole(workers, redis_server)
    for log in logs:
        assert len(warnings(log)) == 1


async def test_before_the_migration_runs_wait_for_it(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    async with pair(tmp_path, redis_server, postgres_url) as (workers, logs):
        await assert_said_once(logs, [NOT_MIGRATED])
        await assert_serves_without_database(workers[0])
        await migrated(postgres_url)
        await assert_whole(workers, redis_server)
    for log in logs:
        assert len(warnings(log)) == 1


async def test_without_either_it_waits_for_both(
    late_redis: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    await migrated(postgres_url)
    async with Proxy.to_postgres(postgres_url) as proxy:
        await proxy.down()
        url = proxy.postgres_url(postgres_url)
        async with pair(tmp_path, late_redis, url) as (workers, logs):
            await assert_said_once(logs, [NO_LOCKS, NO_NEWS, NO_DATABASE, NO_RUNS])
            await assert_serves_without_database(workers[0])
            await proxy.up()
            late_redis.start()
            await assert_whole(workers, late_redis)
    for log in logs:
        assert len(warnings(log)) == 4


async def test_two_schedules_for_one_job_are_told_and_lose_nothing(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    database = await prepare(postgres_url)
    often, seldom = "* * * * * *", "*/2 * * * * *"
    log = tmp_path / "log"

    async def start(schedule: str) -> Worker:
        return await Worker.start(
            redis=redis_server.url, database=postgres_url, sweep=SWEEP_S, lease=2, alert_after=0.2,
            log=log, job={"name": f"w{len(schedule)}", "schedule": schedule},
        )  # fmt: skip

    async def enough() -> bool:
        return len(await effects(database)) >= 8 and "ALARM: job" in log.read_text()

    workers = [await start(often), await start(seldom)]
    try:
        await until(enough)
    finally:
        await asyncio.gather(*(each.stop() for each in workers))
    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    alarms = [each for each in log.read_text().splitlines() if "ALARM: job tick-test has" in each]
    for schedule, worker in zip((often, seldom), workers, strict=True):
        assert re.search(rf"'{re.escape(schedule)} UTC' on [^;:]+:{worker.process.pid}:", alarms[0])
    await database.close()
