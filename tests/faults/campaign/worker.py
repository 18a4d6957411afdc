"""A worker of a campaign: the real service with the campaign's job, which says what it does.

Settings come from the environment; the only argument is a JSON object: `name`, `clock` (arguments
of ScaledClock), `mutation`, `body_ms` (what a body takes, about). Orders come as JSON lines on
stdin: `step_ms` steps the clock, `hold` keeps the bodies that have not written yet (true) or lets
them go (false). When stdin ends the worker stops.

The job has a tick each second of its (fast) clock and queues what is missed. Its body writes as
the built-in jobs do: conditionally, in the run's transaction. It writes one row whatever it finds,
and says in it whether the tick had been applied before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from faults.campaign import mutations
from faults.campaign.world import CLOSERS, JOB, OPEN_KEY, REOPEN_EVERY
from solocron.clock import ScaledClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.logs import TextFormatter
from solocron.service import Solocron
from solocron.settings import load

_APPLIED = text("SELECT count(*) FROM effects WHERE tick = :tick AND applied")
_HALTED = text("SELECT count(*) FROM halted")
_WRITE = text(
    "INSERT INTO effects (tick, attempt, worker, applied, notes, at_ms) VALUES (:tick, :attempt, "
    ":worker, :applied, :notes, EXTRACT(EPOCH FROM clock_timestamp()) * 1000)"
)
_REOPEN = text(
    "UPDATE stores SET is_open = true WHERE id IN (SELECT id FROM stores WHERE hours = :hours "
    "ORDER BY id FOR UPDATE)"
)


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class SteppedClock(ScaledClock):
    """A wall clock that can be set."""

    stepped_ms = 0.0

    def now_ms(self) -> float:
        return super().now_ms() + self.stepped_ms


class CampaignJob:
    """The job's body."""

    def __init__(self, cron: Solocron, options: dict[str, Any]) -> None:
        self._cron = cron
        self._name = options["name"]
        self._body_s = options["body_ms"] / 1000
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, run: Run) -> dict[str, int]:
        what = {"tick": run.tick, "attempt": run.attempt}
        say(event="begin", **what, at_ms=time.time() * 1000)
        await asyncio.sleep(self._body_s)
        await self.go.wait()
        async with run.transaction() as connection:
            seen = (await connection.execute(_APPLIED, {"tick": run.tick})).scalar_one()
            notes = [] if seen else await self._change(connection, run.tick)
            await asyncio.sleep(self._body_s / 2)  # time for another to come in between
            row = {**what, "worker": self._name, "applied": not seen, "notes": len(notes)}
            await connection.execute(_WRITE, row)
        self._cron.parts.relay.publish(notes)
        say(event="wrote", **what)
        return {"notes": len(notes)}

    async def _change(self, connection: AsyncConnection, tick: int) -> list[Any]:
        """Remind the stores that should be open; now and then open those that auto-close closed."""
        if (await connection.execute(_HALTED)).scalar_one():
            return []
        notes, _ = await self._cron.parts.stores.remind_due(
            connection, [OPEN_KEY], tick=tick, now_ms=int(self._cron.parts.clock.now_ms()),
            limit=1000,
        )  # fmt: skip
        if tick // 1000 % REOPEN_EVERY == 0:
            await connection.execute(_REOPEN, {"hours": CLOSERS})
        return notes


async def obey(job: CampaignJob, clock: SteppedClock, stop: asyncio.Event) -> None:
    """Follow the orders on stdin, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        order = json.loads(line)
        clock.stepped_ms += order.get("step_ms", 0)
        if order.get("hold") is True:
            job.go.clear()
        elif order.get("hold") is False:
            job.go.set()
        say(event="obeyed", order=order)
    stop.set()


async def main(options: dict[str, Any]) -> None:
    mutations.apply(options["mutation"])
    clock = SteppedClock(**options["clock"])
    cron = Solocron(load(), clock=clock)
    body = CampaignJob(cron, options)
    cron.add(
        Job(
            name=JOB, calendar=Calendar("* * * * * *"), body=body, overlap="queue",
            catch_up_ms=int(cron.settings.catch_up * 1000), attempts=100, backoff_ms=10,
        )
    )  # fmt: skip
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    obeying = asyncio.create_task(obey(body, clock, stop))
    async with cron.serving() as server:
        say(event="ready", port=server.port)
        await cron.run_until(stop)
    obeying.cancel()
    say(event="stopped")


if __name__ == "__main__":
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    asyncio.run(main(json.loads(sys.argv[1])))
