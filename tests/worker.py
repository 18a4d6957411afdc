"""A worker process for the tests: the real service, saying what it does as JSON lines on stdout.

Its settings come from the environment. Its only argument is a JSON object: `clock` (arguments of
ScaledClock), and `job`, if it is to host the test job: schedule, overlap, attempts, on_redis_down,
ttl_ms, body_ms, block_s (its first run blocks the event loop for so long), error (every run fails
with it), name (written with each effect), witness (a list in Redis that each run's tick is put
into). A line `{"step_ms": n}` on stdin sets its wall clock n ms off what it would be.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections import Counter
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text

from solocron.clock import ScaledClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import LeaseLost, SolocronError
from solocron.service import Solocron
from solocron.settings import load


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class SteppedClock(ScaledClock):
    """A ScaledClock that can be set wrong, without knowing of it."""

    step_ms = 0.0

    def now_ms(self) -> float:
        return super().now_ms() + self.step_ms


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


def block_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def write_late(cron: Solocron, run: Run) -> None:
    """Write past every check of the lease, so that the fence alone can refuse it."""
    try:
        async with cron.parts.ledger.fenced(run.key):
            say(event="late", refused=None)
    except SolocronError as error:
        say(event="late", refused=type(error).__name__)


def effect_job(cron: Solocron, options: dict[str, Any]) -> Job:
    """Writes one row of `effects` per run; without a database it says that it is done."""
    blocks = [options["block_s"]] if "block_s" in options else []

    async def body(run: Run) -> dict[str, int]:
        say(event="start", tick=run.tick, attempt=run.attempt, fallback=run.fallback)
        if blocks:
            block_the_loop(blocks.pop())
            try:
                run.ensure_leased()
                say(event="awake", leased=True)
            except LeaseLost:
                say(event="awake", leased=False)
            await asyncio.shield(asyncio.create_task(write_late(cron, run)))
        if "witness" in options:
            async with Redis.from_url(cron.settings.redis) as redis:
                await redis.rpush(options["witness"], f"{run.tick} {options['name']}")
        if "error" in options:
            raise ValueError(options["error"])
        await asyncio.sleep(options.get("body_ms", 5) / 1000)
        if cron.parts.stored is None:
            run.ensure_leased()
            say(event="done", tick=run.tick, attempt=run.attempt)
            return {"effects": 1}
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
        ttl_ms=options.get("ttl_ms", 300_000),
        catch_up_ms=int(cron.settings.catch_up * 1000),
        overlap=options.get("overlap", "queue"),
        attempts=options.get("attempts", 3),
        reserve=True,
        on_redis_down=options.get("on_redis_down", "run"),
    )


async def obey(clock: SteppedClock) -> None:
    """Do what stdin says, until it ends."""
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
    )
    async for line in stdin:
        clock.step_ms = json.loads(line)["step_ms"]
        say(event="stepped", step_ms=clock.step_ms)


async def main(options: dict[str, Any]) -> None:
    tally = Tally()
    logging.getLogger("solocron").addHandler(tally)
    logging.getLogger("solocron").setLevel("INFO")
    clock = SteppedClock(**options["clock"])
    cron = Solocron(load(), clock=clock)
    if "job" in options:
        cron.add(effect_job(cron, options["job"]))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    obeying = asyncio.create_task(obey(clock))
    async with cron.serving() as server:
        say(event="ready", port=server.port)
        await cron.run_until(stop)
    obeying.cancel()
    await asyncio.gather(obeying, return_exceptions=True)
    say(event="stopped", tally=tally.counts)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(json.loads(sys.argv[1])))
