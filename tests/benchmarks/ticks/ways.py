"""The ways to run jobs by a schedule that are compared, each as its documentation has it. Each is
imported where it is used, as each environment has only its own."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any

from benchmarks.ticks.plan import Plan

Ran = Callable[[int], None]


@asynccontextmanager
async def solocron(plan: Plan, ran: Ran) -> AsyncIterator[None]:
    """The whole service: each tick is claimed in Redis, and begun and finished in the ledger."""
    from solocron import Run, Solocron

    cron = Solocron.from_env()

    def host(number: int) -> None:
        @cron.job(plan.cron(number), name=f"bench-{number}")
        async def body(run: Run) -> None:
            ran(number)

    for number in range(plan.jobs):
        host(number)
    async with cron:
        yield


@asynccontextmanager
async def aiocron(plan: Plan, ran: Ran) -> AsyncIterator[None]:
    """Timers of one process, without a word to others."""
    from aiocron import crontab

    made = [crontab(plan.cron(n), func=partial(ran, n), start=True) for n in range(plan.jobs)]
    try:
        yield
    finally:
        for each in made:
            each.stop()


@asynccontextmanager
async def apscheduler(plan: Plan, ran: Ran) -> AsyncIterator[None]:
    """APScheduler 3, its jobs in memory."""
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    async def body(number: int) -> None:
        ran(number)

    scheduler = AsyncIOScheduler(timezone="UTC")
    for number in range(plan.jobs):
        due = (
            {"second": ",".join(map(str, plan.seconds(number)))} if plan.period else {"year": 2099}
        )
        scheduler.add_job(body, "cron", args=[number], **due)
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown(wait=False)


@asynccontextmanager
async def arq(plan: Plan, ran: Ran) -> AsyncIterator[None]:
    """arq, which looks every half second for what is due, and has it pass through Redis."""
    from arq import cron
    from arq.connections import RedisSettings
    from arq.worker import Worker

    def job(number: int) -> Any:
        async def body(context: Any) -> None:
            ran(number)

        due = {"second": plan.seconds(number)} if plan.period else {"month": 1, "day": 1}
        return cron(body, name=f"bench-{number}", microsecond=0, **due)

    worker = Worker(
        cron_jobs=[job(number) for number in range(plan.jobs)], handle_signals=False,
        redis_settings=RedisSettings.from_dsn(os.environ["REDIS_URL"]),
    )  # fmt: skip
    running = asyncio.create_task(worker.async_run())
    try:
        await _alive(running)
        yield
    finally:
        with suppress(asyncio.CancelledError):  # of the jobs that it cancels
            await worker.close()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def procrastinate(plan: Plan, ran: Ran) -> AsyncIterator[None]:
    """procrastinate, whose jobs pass through PostgreSQL."""
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))

    def host(number: int) -> None:
        @app.periodic(cron=plan.cron(number, last=True), periodic_id=str(number))
        @app.task(name=f"bench-{number}")
        async def body(timestamp: int) -> None:
            ran(number)

    for number in range(plan.jobs):
        host(number)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        running = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
        try:
            await _alive(running)
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _alive(running: asyncio.Task[Any]) -> None:
    """Let a worker begin; raises what ended it at once."""
    await asyncio.wait([running], timeout=0.1)
    if running.done():
        running.result()


Way = Callable[[Plan, Ran], AbstractAsyncContextManager[None]]

WAYS: dict[str, Way] = {
    "solocron": solocron, "aiocron": aiocron, "APScheduler": apscheduler, "arq": arq,
    "procrastinate": procrastinate,
}  # fmt: skip


def quiet() -> None:
    """No log lines of ticks: they are not what is measured."""
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("arq").setLevel(logging.ERROR)
