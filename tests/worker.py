"""A worker process for the tests: the real service, saying what it does as JSON lines on stdout.

Its settings come from the environment. Its only argument is a JSON object: `clock` (arguments of
ScaledClock), and `job`, if it is to host the test job: schedule, overlap, body_ms, name (written
with each effect).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections import Counter
from typing import Any

from sqlalchemy import text

from solocron.clock import ScaledClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.service import Solocron
from solocron.settings import load


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Tally(logging.Handler):
    """Counts how the ticks tried here went, by what the service logs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Starting ") and record.__dict__["attempt"] == 1:
            self.counts["run"] += 1
        elif "skipping" in message.lower():
            self.counts[record.__dict__["reason"]] += 1


def effect_job(cron: Solocron, options: dict[str, Any]) -> Job:
    """Writes one row of `effects` per run."""

    async def body(run: Run) -> dict[str, int]:
        say(event="start", tick=run.tick, attempt=run.attempt, fallback=run.fallback)
        await asyncio.sleep(options.get("body_ms", 5) / 1000)
        async with run.transaction() as connection:
            await connection.execute(
                text("INSERT INTO effects (tick, worker) VALUES (:tick, :worker)"),
                {"tick": run.tick, "worker": options["name"]},
            )
        return {"effects": 1}

    return Job(
        name="tick-test",
        calendar=Calendar(options.get("schedule", "* * * * * *")),
        body=body,
        overlap=options.get("overlap", "queue"),
    )


async def main(options: dict[str, Any]) -> None:
    tally = Tally()
    logging.getLogger("solocron").addHandler(tally)
    logging.getLogger("solocron").setLevel("INFO")
    cron = Solocron(load(), clock=ScaledClock(**options["clock"]))
    if "job" in options:
        cron.add(effect_job(cron, options["job"]))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with cron.serving() as server:
        say(event="ready", port=server.port)
        await cron.run_until(stop)
    say(event="stopped", tally=tally.counts)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(json.loads(sys.argv[1])))
