"""What is measured: the job on a server with a client beside it, and the plain statements."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from sqlalchemy.engine import make_url

from benchmarks.common import BenchError, Say
from benchmarks.common_process import Process, ours, running
from benchmarks.common_world import World
from benchmarks.stores.load import all_hours, fill, migrated, name_of, plain
from conftest import execute

_WATCHED = 200
_PATIENCE_S = 900.0
_SHARE_S = 160.0  # of a size: another round that would take longer is not begun


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
    the run ended, and until all it told was published; `plain_s` and `noted_s`: what the plain
    statements took for the one and the other. `grown`: bytes of memory over idle; `heard_ms`: from
    when a store was closed to when the client that watches it knew."""

    run_s: float
    told_s: float
    again_s: float
    plain_s: float
    noted_s: float
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
        self._numbers = itertools.count()

    def rounds(self, size: Size, count: int) -> list[Turn]:
        """Turns on the same stores, as many as there is time for. Raises BenchError."""
        began = last = time.monotonic()
        self._say(f"{size.name}: filling the table")
        texts = all_hours(size.hours)
        template = self._new(size)
        asyncio.run(fill(template, size.stores, texts))
        found: list[Turn] = []
        longest = 0.0
        while len(found) < count and last + longest < began + _SHARE_S:
            self._say(f"{size.name}: round {len(found) + 1} of {count}")
            last = time.monotonic()
            copies = [self._copy(size, template) for _ in "ab"]
            found.append(self._turn(size, texts, *copies))
            for each in copies:
                self._drop(each)
            last, longest = time.monotonic(), max(longest, time.monotonic() - last)
        self._drop(template)
        return found

    def _new(self, size: Size) -> str:
        if size.kind != "SQLite":
            return self._world.database()
        url = f"sqlite:///{self._world.folder / 'template.db'}"
        asyncio.run(migrated(url))
        return url

    def _copy(self, size: Size, template: str) -> str:
        if size.kind != "SQLite":
            url = self._world.database(template)
            execute(url, "CHECKPOINT")  # each side begins with one done
            return url
        file = self._world.folder / f"{next(self._numbers)}.db"
        shutil.copy(make_url(template).database or "", file)
        return f"sqlite:///{file}"

    def _drop(self, url: str) -> None:
        if make_url(url).get_backend_name() != "sqlite":
            self._world.drop(url)
            return
        file = Path(make_url(url).database or "")
        for each in file.parent.glob(f"{file.name}*"):  # its log, too
            each.unlink()

    def _turn(self, size: Size, texts: Sequence[str], one: str, other: str) -> Turn:
        beside = asyncio.run(plain(other, size.stores, texts))
        command, paths = ours("benchmarks.stores.server")
        variables = {**self._world.environment(one), **paths}
        with running("the server", command, variables, patience_s=_PATIENCE_S) as server:
            closed, heard_ms = asyncio.run(_close(server, size))
            again = server.ask("close")
        if json.loads(again["result"]) != {"closed": 0}:
            raise BenchError(f"the second run did something: {again['result']}")
        return Turn(
            run_s=closed["run_s"], told_s=closed["told_s"], again_s=again["run_s"],
            plain_s=beside.closed_s, noted_s=beside.noted_s,
            cpu_s=closed["cpu_s"], grown=closed["grown"],
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
        "told_to_plain": median(each.told_s / each.noted_s for each in turns),
        "heard_p50_ms": heard[len(heard) // 2], "heard_p99_ms": heard[len(heard) * 99 // 100],
    }  # fmt: skip
