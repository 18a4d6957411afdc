"""A service without a framework: `python plain_host.py`. Signals are its own affair."""

from __future__ import annotations

import asyncio
import signal

from own_jobs import cron


async def main() -> None:
    """Serve solocron's routes on SOLOCRON_PORT until SIGTERM; run a job in between."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with cron.serving():
        await cron.run_job("store-open-reminder")
        await cron.run_until(stop)


asyncio.run(main())
