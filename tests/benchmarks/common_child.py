"""A process of a benchmark, that does what its control socket (descriptor 0) says. Needs nothing
but the standard library: it runs in the peers' environments, too."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def resident(*, collect: bool = True) -> int:
    """Bytes of memory this process has; `collect`: once all garbage is gone."""
    if collect:
        gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def obey(first: Any, commands: Mapping[str, Callable[..., Any]]) -> None:
    """Say `first`, then answer each line, a JSON list of a command and its arguments, until the
    other end closes."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=0))
    writer.write(json.dumps(first).encode() + b"\n")
    async for line in reader:
        command, *arguments = json.loads(line)
        answer = commands[command](*arguments)
        if inspect.isawaitable(answer):
            answer = await answer
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()
