"""The workers of a campaign: started, replaced and told what to do; what they say is kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zygote
from faults.campaign.check import Begin
from faults.campaign.plan import LEASE_S
from faults.campaign.world import AUTO_CLOSE, EPOCH, RATE
from proxy import Proxy
from workers import NEVER

SKEWS_MS = (0, 400, 1200, 2000)
_READY_S, _STOP_S = 60.0, 15.0


class Member:
    """One process. `name` tells it from the ones before it in its place."""

    def __init__(self, name: str, process: zygote.Forked, fleet: Fleet) -> None:
        self.name, self.process, self.port = name, process, 0
        self.ready = asyncio.Event()
        self._fleet = fleet
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                self.port = event["port"]
                self.ready.set()
            await self._fleet.note(self, event)
        self.port = 0

    async def order(self, **order: Any) -> None:
        """Tell it something; a dead process hears nothing."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            await self.process.stdin.drain()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a dead process gets none."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that took too long."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await self.process.wait()
        except TimeoutError:
            self._fleet.forced += 1
            await self.kill()
        await self.reader

    async def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.process.wait()
        await self.reader


class Fleet:
    """Workers with skewed clocks, each with a proxy of its own before the database.

    `begins`, `writes`: what they said of their attempts; `forced`: how many did not stop in time.
    """

    def __init__(
        self, folder: Path, *, redis: Callable[[int], str], database: str, size: int,
        anchor_ms: float, mutation: str, body_ms: float,
    ) -> None:  # fmt: skip
        self._folder, self._redis, self._database = folder, redis, database
        self._options = {"mutation": mutation, "body_ms": body_ms}
        self._anchor_ms = anchor_ms
        self.size = size
        self.links = [Proxy.to_postgres(database) for _ in range(size)]
        self.members: dict[int, Member] = {}
        self.begins: list[Begin] = []
        self.writes: set[tuple[int, int]] = set()
        self.forced = 0
        self._started: Counter[int] = Counter()
        self._news = asyncio.Condition()

    async def start(self) -> None:
        """Start all; returns when all serve."""
        for each in self.links:
            await each.up()
        starts = (self.start_one(number) for number in range(self.size))
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def start_one(self, number: int) -> None:
        """A new process in this place; returns when it serves."""
        self._started[number] += 1
        name = f"w{number}.{self._started[number]}"
        clock = {"anchor_ms": self._anchor_ms, "start_ms": EPOCH, "rate": RATE,
                 "skew_ms": SKEWS_MS[number % len(SKEWS_MS)]}  # fmt: skip
        options = json.dumps({"name": name, "clock": clock, **self._options})
        settings = {
            "port": 0, "store_auto_close_schedule": AUTO_CLOSE, "lease": LEASE_S, "sweep": 0.3,
            "store_open_reminder_schedule": NEVER, "redis_deadline": 0.5, "grace": 5,
            "catch_up": 3 * 3600,
        }  # fmt: skip
        variables = {f"SOLOCRON_{key.upper()}": str(value) for key, value in settings.items()}
        with (self._folder / f"{name}.log").open("ab") as log:
            process = await zygote.start(
                {"module": "faults.campaign.worker"}, [options],
                stdin=zygote.PIPE, stdout=zygote.PIPE, stderr=log, new_session=True,
                env={**os.environ, **variables, "REDIS_URL": self._redis(number),
                     "DATABASE_URL": self.links[number].postgres_url(self._database)},
            )  # fmt: skip
        member = self.members[number] = Member(name, process, self)
        async with asyncio.timeout(_READY_S):
            await asyncio.wait(
                [asyncio.create_task(member.ready.wait()), member.reader],
                return_when=asyncio.FIRST_COMPLETED,
            )
        if not member.ready.is_set():
            raise RuntimeError(f"worker {name} ended at its start: {self.tail(name)}")

    def tail(self, name: str) -> str:
        """The last lines of a worker's log."""
        return "\n".join((self._folder / f"{name}.log").read_text().splitlines()[-5:])

    async def note(self, member: Member, event: dict[str, Any]) -> None:
        """Keep what a worker said."""
        async with self._news:
            if event["event"] == "begin":
                begin = Begin(event["tick"], event["attempt"], member.name, event["at_ms"])
                self.begins.append(begin)
            elif event["event"] == "wrote":
                self.writes.add((event["tick"], event["attempt"]))
            self._news.notify_all()

    async def saw(self, condition: Callable[[], Any], within_s: float) -> Any:
        """What `condition` says once it is true, or a false value after that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._news:
                await self._news.wait_for(condition)
        return condition()

    @property
    def ports(self) -> list[int]:
        """The ports of the workers that serve."""
        return [each.port for each in self.members.values() if each.port]

    async def stop(self) -> None:
        """Stop all, and the proxies."""
        await asyncio.gather(*(each.stop() for each in self.members.values()))
        for each in self.links:
            await each.down()
