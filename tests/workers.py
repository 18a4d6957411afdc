"""Real worker processes that tests start, signal and read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import text

import zygote
from solocron.storage.engine import Database

NEVER = "0 0 1 1 *"  # a schedule for jobs that a test does not want
_PROGRAM = {"path": str(Path(__file__).with_name("worker.py"))}


class Worker:
    """One process running `worker.py`; `events` is what it said so far."""

    def __init__(self, process: zygote.Forked) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        *,
        redis: str,
        database: str,
        clock: Mapping[str, float] | None = None,
        job: Mapping[str, Any] | None = None,
        log: Path | None = None,
        program: Mapping[str, str] = _PROGRAM,
        mutation: str = "",
        **settings: Any,
    ) -> Self:
        """Start a worker and wait until it serves. `settings` are SOLOCRON_ variables; its log
        lines go to the file `log`, or to this process's stderr. Another `program` than `worker.py`
        may know a `mutation`."""
        now = wall_ms()
        clock = {"anchor_ms": now, "start_ms": now, **(clock or {})}
        options: dict[str, Any] = {"clock": clock, "mutation": mutation}
        if job is not None:
            options["job"] = dict(job)
        defaults = {"port": 0, "store_auto_close_schedule": NEVER,
                    "store_open_reminder_schedule": NEVER}  # fmt: skip
        variables = {
            f"SOLOCRON_{key.upper()}": str(value) for key, value in {**defaults, **settings}.items()
        }
        with log.open("ab") if log is not None else nullcontext() as lines:
            process = await zygote.start(
                program, [json.dumps(options)],
                stdin=zygote.PIPE, stdout=zygote.PIPE, stderr=lines,
                env={**os.environ, "REDIS_URL": redis, "DATABASE_URL": database, **variables},
            )  # fmt: skip
        worker = cls(process)
        await worker.saw(lambda event: event["event"] == "ready")
        return worker

    async def order(self, **order: Any) -> None:
        """Say something to it, as a JSON line; a dead process hears nothing."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            await self.process.stdin.drain()

    @property
    def port(self) -> int:
        """The port of its web server."""
        return int(next(each["port"] for each in self.events if each["event"] == "ready"))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.events.append(json.loads(line))
                self._news.notify_all()

    async def saw(self, match: Any, timeout_s: float = 30) -> dict[str, Any]:
        """Wait for an event that matches."""
        async with asyncio.timeout(timeout_s), self._news:
            while True:
                for event in self.events:
                    if match(event):
                        return event
                await self._news.wait()

    @property
    def tally(self) -> dict[str, int]:
        """How its ticks went; known once it has stopped."""
        found: dict[str, int] = self.events[-1]["tally"]
        return found

    async def step(self, ms: float) -> None:
        """Set its wall clock `ms` off what it would be."""
        before = len(self.events)
        await self.order(step_ms=ms)
        await self.saw(lambda event: event in self.events[before:] and event["event"] == "stepped")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()
        await self._reader

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        await self.process.wait()
        await self._reader


async def start_fleet(count: int, **options: Any) -> list[Worker]:
    """Workers w0, w1, ... that host the test job, started together."""
    return await asyncio.gather(
        *(Worker.start(job={"name": f"w{n}"}, **options) for n in range(count))
    )


async def prepare(url: str) -> Database:
    """A migrated database with a table for the effects of the test job."""
    database = Database(url)
    await database.migrate()
    async with database.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (tick BIGINT, worker VARCHAR(20))"))
    return database


async def effects(database: Database) -> list[tuple[int, str]]:
    """(tick, worker) of every effect written, oldest tick first."""
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT tick, worker FROM effects ORDER BY tick"))
        return [(row.tick, row.worker) for row in rows]


@asynccontextmanager
async def table_locked(url: str, table: str = "stores") -> AsyncIterator[None]:
    """Whoever wants to write to the table waits until this ends, or for the lock timeout."""
    database = Database(url, idle_ms=60_000)
    try:
        async with database.begin() as connection:  # on SQLite that is a lock already
            if database.dialect == "postgresql":
                await connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            yield
    finally:
        await database.close()


async def until(condition: Any, timeout_s: float = 60) -> None:
    """Poll an async condition until it is true."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


def wall_ms() -> float:
    return time.time() * 1000
