"""A new release is rolled out: servers are replaced one after the other while ticks come due."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any

from sqlalchemy import select

from conftest import RedisServer
from solocron.storage.engine import Database
from solocron.storage.tables import job_runs
from workers import Worker, effects, prepare, until, wall_ms

SERVERS = 4
EVERY_S = 2.0
TICKS = 100
RATE = 5.0
START = 1_800_000_000_000


class Fleet:
    """Servers that are replaced by newer ones, the oldest first."""

    def __init__(self, redis: RedisServer, database: str, job: dict[str, Any], **settings: Any):
        self._redis = redis
        self._database = database
        self._job = job
        self._settings = settings
        self._numbers = itertools.count()
        self._now = wall_ms()
        self._rate = settings.pop("rate", 1.0)
        self.serving: list[Worker] = []
        self.gone: list[Worker] = []

    async def add(self) -> None:
        clock = {"anchor_ms": self._now, "start_ms": START, "rate": self._rate}
        self.serving.append(
            await Worker.start(
                redis=self._redis.url, database=self._database, clock=clock,
                job={"name": f"w{next(self._numbers)}", **self._job}, **self._settings,
            )
        )  # fmt: skip

    async def replace(self) -> None:
        """Stop the oldest, and start another while it stops."""
        oldest = self.serving.pop(0)
        self.gone.append(oldest)
        await asyncio.gather(oldest.stop(), self.add())

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.serving))
        self.gone += self.serving

    @property
    def starts(self) -> list[dict[str, Any]]:
        events = [event for worker in self.gone + self.serving for event in worker.events]
        return [event for event in events if event["event"] == "start"]


async def runs_of(database: Database) -> list[tuple[int, str, int]]:
    """(tick, state, attempt) of every run in the ledger, oldest tick first."""
    columns = (job_runs.c.tick, job_runs.c.state, job_runs.c.attempt)
    async with database.connect() as connection:
        rows = await connection.execute(select(*columns).order_by(job_runs.c.tick))
        return [(row.tick, row.state, row.attempt) for row in rows]


async def test_a_rolling_restart_loses_no_tick_and_doubles_none(
    redis_server: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)
    fleet = Fleet(redis_server, database_url, {"body_ms": 100}, rate=RATE, sweep=0.5)
    await asyncio.gather(*(fleet.add() for _ in range(SERVERS)))
    loop = asyncio.get_running_loop()

    async def enough() -> bool:
        rows = await effects(database)
        return bool(rows) and rows[-1][0] >= rows[0][0] + TICKS * 1000

    try:
        due = loop.time()
        while not await enough():
            await fleet.replace()
            due = max(due + EVERY_S, loop.time())
            await asyncio.sleep(due - loop.time())
    finally:
        await fleet.stop()
    rows = await effects(database)
    ticks = [tick for tick, _ in rows]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000)) and len(ticks) > TICKS
    assert await runs_of(database) == [(tick, "succeeded", 1) for tick in ticks]
    await database.close()
    assert {event["attempt"] for event in fleet.starts} == {1}  # each run was let finish
    assert {worker.process.returncode for worker in fleet.gone} == {0}
    assert len(fleet.gone) >= 2 * SERVERS  # each place was filled anew at least once
    assert len({worker for _, worker in rows}) > SERVERS
    assert redis_server.cli("KEYS", "cron:*") == redis_server.cli("KEYS", "*:alive") == ""


async def test_a_run_too_long_for_the_grace_outlives_the_servers_it_began_on(
    redis_server: RedisServer, database_url: str
) -> None:
    """However often it is handed over: more often than a job's attempts may crash."""
    database = await prepare(database_url)
    job = {"body_ms": 4000, "schedule": "*/5 * * * * *", "overlap": "skip"}
    fleet = Fleet(redis_server, database_url, job, sweep=0.2, grace=0.1, lease=30)
    handovers = 4

    async def began(attempt: int) -> bool:
        return bool(fleet.starts) and attempt in {
            event["attempt"] for event in fleet.starts if event["tick"] == fleet.starts[0]["tick"]
        }

    async def written() -> bool:
        return bool(await effects(database))

    await fleet.add()
    try:
        for attempt in range(1, handovers + 1):
            await until(partial(began, attempt))
            await fleet.replace()
        await until(written)
    finally:
        await fleet.stop()
    tick = fleet.starts[0]["tick"]
    assert [each for each, _ in await effects(database)] == [tick]
    runs = [run for run in await runs_of(database) if run[0] == tick]
    assert runs == [(tick, "succeeded", handovers + 1)]
    await database.close()
