"""Serving until told to stop: what `solocron serve` and the demo's workers do."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable

from solocron.sdnotify import ServiceManager
from solocron.service import Solocron
from solocron.web.server import WebServer

log = logging.getLogger("solocron")


async def serve_until_signalled(
    cron: Solocron,
    *,
    stop: asyncio.Event | None = None,
    started: Callable[[WebServer], None] | None = None,
) -> None:
    """Run the jobs and the web server until SIGTERM, SIGINT or `stop`.

    `started` is told the server once it listens and the jobs are armed, as is the service manager
    that started this process, if one did. A second signal cancels the calling task. Raises
    ConfigError, and what broke the service.
    """
    stopping = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def on_signal(number: signal.Signals) -> None:
        if stopping.is_set():
            task.cancel()
        log.info("%s: stopping", number.name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    manager = ServiceManager.from_environment(os.environ)
    alive = asyncio.create_task(manager.stay_alive())
    try:
        async with cron.serving() as server:
            # What is there now stays: to look through all of it again and again, for garbage,
            # would make ticks late.
            gc.collect()
            gc.freeze()
            if started is not None:
                started(server)
            manager.ready(f"{len(cron.jobs)} jobs, port {server.port}")
            try:
                await cron.run_until(stopping)
            except asyncio.CancelledError:
                if stopping.is_set():
                    task.cancel()  # a second signal so soon is meant for the graceful stop, too
                raise
            finally:
                manager.stopping()
        log.info("stopped")
    finally:
        gc.unfreeze()
        alive.cancel()  # to the end of the stop: what is drained must not be taken for dead
        await asyncio.gather(alive, return_exceptions=True)
