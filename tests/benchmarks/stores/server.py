"""A server process of the benchmark: the whole service, on uvloop, that closes stores when it is
told to."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from sqlalchemy import select

from benchmarks.common import BenchError
from benchmarks.common_child import obey, resident
from solocron import Solocron
from solocron.storage.tables import notifications

_JOB = "store-auto-close"
_NAP_S = 0.005
_LOOK_S = 0.02


class Watch:
    """How late the loop was, each 5 ms, and the most memory meanwhile."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self.resident = 0

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._look())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            due = time.perf_counter() + _NAP_S  # uvloop's own time is in whole ms
            await asyncio.sleep(_NAP_S)
            self.late_ms.append(1000 * max(0.0, time.perf_counter() - due))
            self.resident = max(self.resident, resident(collect=False))


async def close(cron: Solocron) -> dict[str, Any]:
    """Run the job: s until the run ended, until all was published, and what it did."""
    idle = resident()
    watch = Watch()
    cpu, began = time.process_time(), time.perf_counter()
    async with watch.watching():
        outcome = await cron.run_job(_JOB)
        if outcome.state == "succeeded":
            await published(cron)
        wall = time.perf_counter() - began
    if outcome.state != "succeeded":
        raise BenchError(f"{_JOB} {outcome.state}: {outcome.reason}")
    row = (await cron.parts.ledger.history(_JOB, 1))[0]
    late = sorted(watch.late_ms)
    return {
        "run_s": row["duration_ms"] / 1000, "told_s": wall, "result": row["result"],
        "cpu_s": time.process_time() - cpu, "grown": watch.resident - idle,
        "lag_p99_ms": late[len(late) * 99 // 100] if late else 0.0,
        "lag_max_ms": late[-1] if late else 0.0,
    }  # fmt: skip


async def published(cron: Solocron) -> None:
    """Returns when nothing that was told waits to be published."""
    waits = select(notifications.c.seq).where(notifications.c.published_at.is_(None)).limit(1)
    while True:
        async with cron.parts.database.connect() as connection:
            if (await connection.execute(waits)).first() is None:
                return
        await asyncio.sleep(_LOOK_S)


async def main() -> None:
    cron = Solocron.from_env()
    async with cron.serving() as server:
        await obey(server.port, {"close": lambda: close(cron)})


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
