"""A process of the benchmark: one way to lock, on uvloop. Its arguments: the way, the port of
Redis, and the most tasks there will be."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import uvloop

from benchmarks.common_child import obey
from benchmarks.locks.ways import WAYS, Cycle, cycles


async def turn(cycle: Cycle, tasks: int, seconds: float) -> dict[str, Any]:
    """Cycles, and what they took in s of time and of this process's CPU time."""
    began, cpu = time.perf_counter(), time.process_time()
    done = await cycles(cycle, tasks, seconds)
    return {
        "cycles": done, "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu,
    }  # fmt: skip


async def main(way: str, port: int, most: int) -> None:
    try:
        async with WAYS[way](port, most) as cycle:
            await cycle("cron:bench-first")
            await obey({}, {"turn": lambda *asked: turn(cycle, *asked)})
    except Exception as error:  # whatever a library does is told, not judged
        await obey({"error": f"{type(error).__name__}: {str(error)[:200]}"}, {})


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
