"""A process of the benchmark: one way to run jobs, on uvloop. Its arguments: the way, the number of
jobs, the period of each in s, and whether they come due together (1) or not (0)."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

import uvloop

from benchmarks.common_child import obey, resident
from benchmarks.ticks.plan import Plan
from benchmarks.ticks.ways import WAYS, quiet


class Bodies:
    """The jobs' bodies: they only note when they began."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._late_ms: list[float] = []

    def ran(self, job: int) -> None:
        self._late_ms.append(self._plan.late_ms(job, time.time()))

    async def window(self, seconds: float) -> dict[str, Any]:
        """How late (ms) each body was that began within so many s, the CPU time meanwhile, and the
        bytes of this process's memory."""
        self._late_ms = []
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        wall = time.perf_counter() - began
        return {
            "late_ms": self._late_ms, "cpu": (time.process_time() - cpu) / wall,
            "resident": resident(),
        }  # fmt: skip


async def main(way: str, plan: Plan) -> None:
    bodies = Bodies(plan)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        async with WAYS[way](plan, bodies.ran):
            gc.collect()
            gc.freeze()  # as solocron's own processes do: what stays need not be looked through
            ready = {"start_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
            await obey(ready, {"window": bodies.window})
    except Exception as error:  # whatever a library does is told, not judged
        await obey({"error": f"{type(error).__name__}: {str(error)[:200]}"}, {})


if __name__ == "__main__":
    quiet()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], Plan(*map(int, sys.argv[2:4]), sys.argv[4] == "1")))
