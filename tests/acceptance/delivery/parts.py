"""The processes of the trial: the three servers behind no proxy, and the clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import zygote
from acceptance.delivery.world import EVERY_TICK
from workers import Worker, wall_ms

LEASE_S = 4.0
_RATE = 5.0  # of the servers' clocks: a tick each 200 ms
_PROGRAM = {"module": "acceptance.delivery.worker"}
_PROCESSES = 2
_CONNECTED_S = 120.0


class Crowd:
    """All clients, in a few processes."""

    def __init__(self, processes: Sequence[Worker]) -> None:
        self._processes = processes

    @classmethod
    async def start(cls, seed: int, clients: int, stores: int) -> Crowd:
        """Start them; they wait to be told of servers."""
        made = []
        for part in range(_PROCESSES):
            options = {"seed": seed, "clients": clients, "stores": stores,
                       "part": part, "parts": _PROCESSES}  # fmt: skip
            process = await zygote.start(
                {"module": "acceptance.delivery.clients"}, [json.dumps(options)],
                env=os.environ, stdin=zygote.PIPE, stdout=zygote.PIPE,
            )  # fmt: skip
            made.append(Worker(process))
        return cls(made)

    async def order(self, **order: Any) -> None:
        """Tell all of them."""
        await asyncio.gather(*(each.order(**order) for each in self._processes))

    async def said(self, word: str, within_s: float) -> bool:
        """Whether each process says so in time."""
        waits = (each.saw(lambda e: e["event"] == word, within_s) for each in self._processes)
        try:
            await asyncio.gather(*waits)
        except TimeoutError:
            return False
        return True

    async def connected(self) -> None:
        """Wait until every client was once subscribed."""
        if not await self.said("connected", _CONNECTED_S):
            raise RuntimeError(f"not all clients could connect within {_CONNECTED_S:g} s")

    @property
    def taken(self) -> int:
        """How many notifications they have, as they last said."""
        return sum(
            next((e["taken"] for e in reversed(each.events) if e["event"] == "progress"), 0)
            for each in self._processes
        )

    async def report(self) -> list[Mapping[str, Any]]:
        """What each client was sent."""
        await self.order(report=True)
        await self.said("reported", 60)
        return [e for each in self._processes for e in each.events if e["event"] == "client"]

    async def stop(self) -> None:
        """End them."""
        for each in self._processes:
            await each.kill()


class Servers:
    """The workers, whose ports the clients are told whenever they change."""

    def __init__(
        self, folder: Path, crowd: Crowd, *, redis: str, database: str, mutation: str, size: int
    ) -> None:
        self._folder, self._crowd = folder, crowd
        self._where = {"redis": redis, "database": database, "mutation": mutation}
        self._anchor_ms = wall_ms()
        self.size = size
        self._started = 0
        self.members: dict[int, Worker] = {}

    async def start(self) -> None:
        """Start all."""
        await asyncio.gather(*(self.start_one(number) for number in range(self.size)))

    async def start_one(self, number: int) -> None:
        """A new process in this place; returns when it serves."""
        self._started += 1
        clock = {"anchor_ms": self._anchor_ms, "start_ms": self._anchor_ms, "rate": _RATE}
        self.members[number] = await Worker.start(
            **self._where, clock=clock, program=_PROGRAM, lease=LEASE_S, sweep=0.3, grace=5,
            log=self._folder / f"w{number}.{self._started}.log", redis_deadline=0.5,
            store_open_reminder_schedule=EVERY_TICK,
            max_connections_per_address=0,  # all clients come from this machine
        )  # fmt: skip
        await self._tell()

    async def _tell(self) -> None:
        await self._crowd.order(ports=[each.port for each in self.members.values()])

    async def kill(self, number: int) -> None:
        """SIGKILL."""
        await self.members.pop(number).kill()
        await self._tell()

    async def drain(self, number: int) -> None:
        """SIGTERM; returns when it has ended. New clients go elsewhere meanwhile."""
        member = self.members.pop(number)
        await self._tell()
        await member.stop()

    def signal(self, number: int, what: signal.Signals) -> None:
        """To one of them."""
        self.members[number].signal(what)

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(each.stop() for each in self.members.values()))

    def errors(self) -> list[str]:
        """What they logged with a traceback: what no code of theirs expected. (Alarms and lost
        leases are logged as errors too, and are what the faults are for.)"""
        return [
            f"{log.stem}: {said}"
            for log in sorted(self._folder.glob("w*.log"))
            for said, line in pairwise(log.read_text().splitlines())
            if line.startswith("Traceback") and said.startswith(("ERROR", "CRITICAL"))
        ]
