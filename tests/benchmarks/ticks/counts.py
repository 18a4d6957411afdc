"""What a tick costs in commands, by the number of workers, as the servers themselves count."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common_world import World
from conftest import RedisServer
from solocron.storage.engine import Database
from workers import Worker, effects, prepare, until

_NOT_NOW_S = 3600  # sweeps and looks, which are not part of a tick
_AT_ONCE = 10


@dataclass(frozen=True)
class Cost:
    """Of a tick on so many workers: scripts of Redis in all, and for each loser beyond the winner's
    two; statements on the ledger in all, and of each worker that won none meanwhile."""

    workers: int
    ticks: int
    scripts: float
    scripts_per_loser: float | None
    statements: float
    statements_per_loser: float | None


async def per_tick(world: World, workers: int, ticks: int) -> Cost:
    """Watch workers that all have one job, due every second, for so many ticks."""
    url = await asyncio.to_thread(world.database)
    database = await prepare(url)
    world.redis.cli("FLUSHALL")
    fleet: list[Worker] = []
    try:
        for first in range(0, workers, _AT_ONCE):
            fleet += await asyncio.gather(
                *(
                    Worker.start(
                        redis=world.redis.url, database=url, sweep=_NOT_NOW_S,
                        alert_after=_NOT_NOW_S, log=world.folder / "workers",
                        job={"name": f"w{number}"},
                    )
                    for number in range(first, min(first + _AT_ONCE, workers))
                )
            )  # fmt: skip
        return await _watch(world, database, fleet, ticks)
    finally:
        await asyncio.gather(*(worker.stop() for worker in fleet))
        await database.close()


async def _watch(world: World, database: Database, fleet: Sequence[Worker], ticks: int) -> Cost:
    await _ran(database, 2)
    await asyncio.to_thread(world.log_statements, True)
    await _between_ticks()
    world.redis.cli("config", "resetstat")
    read = os.stat(world.log).st_size
    first = len(await effects(database))
    await _ran(database, first + ticks)
    await _between_ticks()
    scripts, won = _scripts(world.redis), Counter(await effects(database))
    statements = _statements(world.log, read)
    await asyncio.to_thread(world.log_statements, False)
    counted = sorted(won)[first:]
    winners = {worker for _, worker in counted}
    losers = [w.process.pid for n, w in enumerate(fleet) if f"w{n}" not in winners]
    some, lost = len(counted), len(counted) * (len(fleet) - 1)
    return Cost(
        workers=len(fleet), ticks=some, scripts=scripts / some,
        scripts_per_loser=(scripts - 2 * some) / lost if lost else None,
        statements=sum(statements.values()) / some,
        statements_per_loser=sum(statements[pid] for pid in losers) / len(losers) / some
        if losers else None,
    )  # fmt: skip


async def _ran(database: Database, count: int) -> None:
    """Wait until so many ticks have run."""

    async def enough() -> bool:
        return len(await effects(database)) >= count

    await until(enough, 120)


async def _between_ticks() -> None:
    """Wait for the middle of a second."""
    await asyncio.sleep((1.5 - time.time() % 1) % 1)


def _scripts(redis: RedisServer) -> int:
    stats = redis.cli("info", "commandstats")
    return sum(int(count) for count in re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", stats))


def _statements(log: Path, read: int) -> Counter[int]:
    """Statements on the ledger since the log had so many bytes, by process of the client."""
    found: Counter[int] = Counter()
    with log.open("rb") as lines:
        lines.seek(read)
        for line in lines:
            match = re.match(rb"solocron (\d+)\|LOG: .*(?:execute|statement).*?: (.*)", line)
            if match and b"job_runs" in match[2]:
                found[int(match[1])] += 1
    return found


def plain(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """The same as JSON has it."""
    return [asdict(each) for each in costs]
