"""The demo's job that fails: an operator sees what becomes of such a one, and mends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.demo.script import FAILING
from solocron.settings import Settings
from solocron.wiring import policies


def failing_job(settings: Settings, schedule: str, file: str) -> Job:
    """A job that fails, at its one attempt, while the file exists."""

    async def check(run: Run) -> None:
        if await asyncio.to_thread(Path(file).exists):
            raise RuntimeError(f"the stock cannot be counted while {file} exists")

    return Job(
        name=FAILING, calendar=Calendar(schedule, settings.timezone), body=check, attempts=1,
        **policies(settings),
    )  # fmt: skip
