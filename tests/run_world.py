"""A server whose database is PostgreSQL behind a proxy, and the runs a test gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import Proxy
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from workers import effects, prepare

CALENDAR = Calendar("* * * * *")


def job(body: Body, name: str = "one", **options: Any) -> Job:
    return Job(name=name, calendar=CALENDAR, body=body, backoff_ms=1, **options)


def latest() -> int:
    tick = CALENDAR.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


async def write(connection: AsyncConnection, run: Run, what: str = "w") -> None:
    row = {"tick": run.tick, "what": what}
    await connection.execute(text("INSERT INTO effects (tick, worker) VALUES (:tick, :what)"), row)


@dataclass
class World:
    """A server whose database is behind `proxy`; `direct` is the same database without it."""

    proxy: Proxy
    direct: Database
    database: Database
    ledger: RunLedger
    locks: LockManager

    async def run(self, body: Body, lease_ms: int = 5000, **options: Any) -> Outcome:
        runner = Runner(
            locks=self.locks, ledger=self.ledger, clock=SystemClock(), owner="w", lease_ms=lease_ms
        )
        async with asyncio.timeout(60):
            return await runner.run_tick(job(body, **options), latest())

    async def written(self) -> list[str]:
        return [what for _, what in await effects(self.direct)]

    async def row(self) -> tuple[int, str]:
        (row,) = await RunLedger(self.direct).history()
        return row["attempt"], row["state"]


@asynccontextmanager
async def world_at(postgres_url: str, redis_url: str) -> AsyncIterator[World]:
    direct = await prepare(postgres_url)
    async with (
        Proxy.to_postgres(postgres_url) as proxy,
        LockManager(redis_url, clock=SystemClock()) as locks,
    ):
        database = Database(proxy.postgres_url(postgres_url))
        yield World(proxy, direct, database, RunLedger(database), locks)
        await database.close()
    await direct.close()
