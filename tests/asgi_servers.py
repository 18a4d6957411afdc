"""ASGI servers in the process and on the loop of a test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import hypercorn
import uvicorn
from hypercorn.asyncio import serve

Server = Callable[[Any], AbstractAsyncContextManager[int]]


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def on_uvicorn(app: Any, **options: Any) -> AsyncIterator[int]:
    """The port where uvicorn serves the application, until the block ends."""
    listener = _listener()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def on_hypercorn(app: Any) -> AsyncIterator[int]:
    """The port where hypercorn does."""
    listener = _listener()
    config = hypercorn.Config()
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]  # which it closes
    config.errorlog = None
    config.graceful_timeout = 0.2
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield port  # who connects early waits in the backlog
    finally:
        stop.set()
        await serving
