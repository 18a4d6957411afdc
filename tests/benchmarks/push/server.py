"""A server process of the benchmark: one way to push, whose name is its argument, on uvloop."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import uvloop

from benchmarks.common_child import obey, resident
from benchmarks.push.ways import WAYS, Way
from benchmarks.push.world import payloads


async def send(way: Way, first: int, count: int, size: int) -> float:
    """Send messages first, first + 1, ... to every client; when that began, in monotonic s."""
    messages = payloads(first, count, size)
    began = time.monotonic()
    await way.send(first, messages)
    return began


async def main(name: str) -> None:
    way = WAYS[name]()
    async with way.serving() as port:
        await obey(port, {
            "cpu": time.process_time, "resident": resident, "clients": lambda: way.clients,
            "pending": lambda: way.pending, "send": lambda *asked: send(way, *asked),
        })  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
