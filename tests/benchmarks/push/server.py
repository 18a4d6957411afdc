"""A server process of the benchmark: one way to push, on uvloop, that does what its control socket
says. Its arguments: the name of the way, and the descriptor of that socket."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.push.ways import WAYS, Way
from benchmarks.push.world import payloads


def resident() -> int:
    """Bytes of memory this process has, once all garbage is gone."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def send(way: Way, first: int, count: int, size: int) -> float:
    """Send messages first, first + 1, ... to every client; when that began, in monotonic s."""
    messages = payloads(first, count, size)
    began = time.monotonic()
    await way.send(first, messages)
    return began


async def obey(way: Way, control: socket.socket) -> None:
    """Answer each line, a JSON list of a command and its arguments, until the other end closes."""
    reader, writer = await asyncio.open_connection(sock=control)
    simple: dict[str, Callable[[], Any]] = {
        "cpu": time.process_time, "resident": resident, "clients": lambda: way.clients,
        "pending": lambda: way.pending,
    }  # fmt: skip
    async for line in reader:
        command, *arguments = json.loads(line)
        if command == "send":
            answer = await send(way, *arguments)
        else:
            answer = simple[command]()
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()


async def main(name: str, control: socket.socket) -> None:
    way = WAYS[name]()
    async with way.serving() as port:
        control.setblocking(True)
        control.sendall(json.dumps(port).encode() + b"\n")
        control.setblocking(False)
        await obey(way, control)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))))
