"""A worker process for the tests: hosts one job and prints a line per event as JSON.

Arguments, as one JSON object: redis, database, name, schedule, skew_ms, anchor_ms, start_ms, rate,
lease_ms, sweep_s, overlap, body_ms, stop_ms (wall time of the last tick to run).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import Any

from sqlalchemy import text

from solocron.clock import ScaledClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


async def main(options: dict[str, Any]) -> None:
    clock = ScaledClock(
        anchor_ms=options["anchor_ms"],
        start_ms=options["start_ms"],
        rate=options.get("rate", 1.0),
        skew_ms=options.get("skew_ms", 0.0),
    )
    database = Database(options["database"])
    ledger = RunLedger(database)

    async def body(run: Run) -> dict[str, int]:
        say(event="start", tick=run.tick, attempt=run.attempt, fallback=run.fallback)
        await asyncio.sleep(options.get("body_ms", 5) / 1000)
        async with run.transaction() as connection:
            await connection.execute(
                text("INSERT INTO effects (tick, worker) VALUES (:tick, :worker)"),
                {"tick": run.tick, "worker": options["name"]},
            )
        return {"effects": 1}

    job = Job(
        name="tick-test",
        calendar=Calendar(options.get("schedule", "* * * * * *")),
        body=body,
        overlap=options.get("overlap", "queue"),
    )
    lease_ms = options.get("lease_ms", 5000)
    async with LockManager(
        options["redis"], clock=clock, lease_ms=lease_ms, deadline_s=options.get("deadline_s", 1.0)
    ) as locks:
        runner = Runner(
            locks=locks, ledger=ledger, clock=clock, owner=options["name"], lease_ms=lease_ms
        )
        scheduler = Scheduler(
            [job],
            runner=runner,
            locks=locks,
            ledger=ledger,
            clock=clock,
            sweep_s=options.get("sweep_s", 5.0),
        )
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        scheduler.start()
        say(event="ready")
        await stopped.wait()
        await scheduler.stop(10)
    await database.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(json.loads(sys.argv[1])))
