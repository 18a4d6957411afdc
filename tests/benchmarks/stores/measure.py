"""What is measured: the job on a server with a client beside it, and the plain statements."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import median
from typing import Any

import aiohttp

from benchmarks.common import BenchError, Say
from benchmarks.common_process import Process, ours, running
from benchmarks.common_world import World
from benchmarks.stores.load import all_hours, fill, migrated, name_of, plain

_WATCHED = 200
_PATIENCE_S = 900.0


@dataclass(frozen=True)
class Size:
    """So many stores with so many distinct hours, half of each due, in a database of that kind."""

    kind: str
    stores: int
    hours: int

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"{self.kind}, {self.stores:,} stores with {self.hours:,} hours"


@dataclass(frozen=True)
class Turn:
    """A run that closed all that was due, and the next one, of which nothing was. Times in s until
    the run ended, and until all it told was published; `plain_s`: what the plain statements took.
    `grown`: bytes of memory over idle; `heard_ms`: from when a store was closed to when the client
    that watches it knew."""

    run_s: float
    told_s: float
    again_s: float
    plain_s: float
    cpu_s: float
    grown: int
    lag_p99_ms: float
    lag_max_ms: float
    heard_ms: Sequence[float]


class Measure:
    """Measures in `world`."""

    def __init__(self, world: World, say: Say) -> None:
        self._world = world
        self._say = say

    def rounds(self, size: Size, count: int) -> list[Turn]:
        """Turns on the same stores. Raises BenchError."""
        self._say(f"{size.name}: filling the table")
        texts = all_hours(size.hours)
        if size.kind == "SQLite":
            return [
                self._turn(size, texts, *(self._sqlite(size, texts) for _ in "ab"))
                for _ in range(count)
            ]
        template = self._world.database()
        asyncio.run(fill(template, size.stores, texts))
        found = []
        for number in range(count):
            self._say(f"{size.name}: round {number + 1} of {count}")
            copies = [self._world.database(template) for _ in "ab"]
            found.append(self._turn(size, texts, *copies))
            for each in copies:
                self._world.drop(each)
        self._world.drop(template)
        return found

    def _sqlite(self, size: Size, texts: Sequence[str]) -> str:
        number = len(list(self._world.folder.glob("*.db")))
        url = f"sqlite:///{self._world.folder / f'{number}.db'}"
        asyncio.run(migrated(url))
        asyncio.run(fill(url, size.stores, texts))
        return url

    def _turn(self, size: Size, texts: Sequence[str], one: str, other: str) -> Turn:
        plain_s = asyncio.run(plain(other, size.stores, texts))
        command, paths = ours("benchmarks.stores.server")
        variables = {**self._world.environment(one), **paths}
        with running("the server", command, variables, patience_s=_PATIENCE_S) as server:
            closed, heard_ms = asyncio.run(_close(server, size))
            again = server.ask("close")
        if json.loads(again["result"]) != {"closed": 0}:
            raise BenchError(f"the second run did something: {again['result']}")
        return Turn(
            run_s=closed["run_s"], told_s=closed["told_s"], again_s=again["run_s"],
            plain_s=plain_s, cpu_s=closed["cpu_s"], grown=closed["grown"],
            lag_p99_ms=closed["lag_p99_ms"], lag_max_ms=closed["lag_max_ms"], heard_ms=heard_ms,
        )  # fmt: skip


async def _close(server: Process, size: Size) -> tuple[dict[str, Any], list[float]]:
    """Have the server close what is due, with a client that watches some of it."""
    due = range(0, size.stores, 2)
    watched = [name_of(number) for number in due[:: max(1, len(due) // _WATCHED)]]
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{server.said}/ws", protocols=["solocron.v1"]) as ws,
    ):
        await ws.send_json({"type": "subscribe", "stores": dict.fromkeys(watched)})
        said = await ws.receive_json()
        if said.get("type") != "subscribed":
            raise BenchError(f"the client was told {json.dumps(said)[:200]}")
        server.tell("close")
        heard_ms = []
        async with asyncio.timeout(_PATIENCE_S):
            for _ in watched:
                event = await ws.receive_json()
                told = datetime.fromisoformat(event["time"]).timestamp()
                heard_ms.append(1000 * (time.time() - told))
        closed = await asyncio.to_thread(server.answer)
    if json.loads(closed["result"]) != {"closed": len(due)}:
        raise BenchError(f"{len(due)} stores were due: {closed['result']}")
    return closed, heard_ms


def summary(turns: Sequence[Turn]) -> dict[str, float]:
    """Medians of each figure, and of what a run takes beside the plain statements."""
    heard = sorted(ms for each in turns for ms in each.heard_ms)
    names = [name for name in asdict(turns[0]) if name != "heard_ms"]
    return {
        **{name: median(getattr(each, name) for each in turns) for name in names},
        "run_to_plain": median(each.run_s / each.plain_s for each in turns),
        "told_to_plain": median(each.told_s / each.plain_s for each in turns),
        "heard_p50_ms": heard[len(heard) // 2], "heard_p99_ms": heard[len(heard) * 99 // 100],
    }  # fmt: skip
