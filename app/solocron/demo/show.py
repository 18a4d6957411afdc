"""The demo: three workers, one Redis, a night that passes in half a minute, and a judge.

Everything is real and lives in one temporary folder: a redis-server, an SQLite database, three
worker processes with the built-in jobs, and a WebSocket client. Only the workers' wall clock runs
faster, so that half an hour passes in 2.4 s; leases stay in real time. At the end the ledger, the
logs and the client's frames are compared (`demo.verdict`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from sqlalchemy import select

from solocron.clock import ScaledClock
from solocron.cron.ticks import Calendar
from solocron.demo.client import Watcher
from solocron.demo.processes import GRACE_S, Redis, Worker
from solocron.demo.report import WORKERS, Board, print_intro, print_verdict, print_workers
from solocron.demo.stores import city_of, demo_stores
from solocron.demo.verdict import Due, Facts, Record, verdict
from solocron.storage.engine import Database
from solocron.storage.outbox import Outbox
from solocron.storage.tables import job_runs
from solocron.stores.table import StoreTable

SCHEDULES = {"store-auto-close": "0 0,6 * * *", "store-open-reminder": "*/30 * * * *"}
RATE = 750.0
BEGIN_MS = int(datetime(2026, 1, 14, 23, 31, tzinfo=UTC).timestamp() * 1000)
END_MS = int(datetime(2026, 1, 15, 6, 0, tzinfo=UTC).timestamp() * 1000)  # of --once: its last tick

_LATE_MS = 90 * 60_000  # 7 s of real time: what has not run by then will not
_LOOK_S = 0.1
_CAUGHT_UP_WITHIN_S = 5.0
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def show(*, once: bool) -> int:
    """Run the demo until Ctrl-C, or to its end if `once`; returns the exit code.

    0: every tick ran once and no notification was lost or doubled; 1: not so; 130: interrupted
    before that was known. Leaves no process and no file. Raises ConfigError without a
    redis-server, SolocronError when a part does not start.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if not signalled:  # the clean-up that follows the first one has its own time limit
            task.cancel()
        signalled = True

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        async with _stage(Console(highlight=False)) as stage:
            return await _perform(stage, once)
    except asyncio.CancelledError:
        return _INTERRUPTED
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@dataclass(frozen=True)
class _Stage:
    """What the show is made of. `ready_ms`: the simulated time when the first worker served."""

    console: Console
    board: Board
    clock: ScaledClock
    database: Database
    workers: Sequence[Worker]
    watcher: Watcher
    watching: asyncio.Task[None]
    ready_ms: float

    def alive(self) -> list[Worker]:
        return [each for each in self.workers if each.is_alive]


@asynccontextmanager
async def _stage(console: Console) -> AsyncIterator[_Stage]:
    """Start everything; at the end, and also when a start fails, stop and remove it."""
    async with AsyncExitStack() as stack:
        name = stack.enter_context(TemporaryDirectory(prefix="solocron-demo-"))
        redis = Redis(Path(name))
        stack.push_async_callback(redis.stop)
        await redis.start()
        print_intro(console, len(city_of()), RATE, SCHEDULES)
        url = f"sqlite:///{Path(name) / 'demo.db'}"
        database = Database(url)
        stack.push_async_callback(database.close)
        await _fill(database)
        board = Board(console, city_of())
        workers: list[Worker] = []
        stack.push_async_callback(_stop, workers)
        await _spawn(workers, board, _environment(redis.url, url))
        clock = {"anchor_ms": time.time() * 1000, "start_ms": float(BEGIN_MS), "rate": RATE}
        scaled = ScaledClock(**clock)

        async def start(worker: Worker) -> float:
            await worker.start(clock)
            return scaled.now_ms()

        ready_ms = min(await asyncio.gather(*(start(each) for each in workers)))
        print_workers(console, redis.port, workers)
        watcher = _watcher(workers, board)
        watching = asyncio.create_task(watcher.run())
        stack.push_async_callback(_cancel, watching)
        yield _Stage(console, board, scaled, database, workers, watcher, watching, ready_ms)


async def _fill(database: Database) -> None:
    await database.migrate()
    async with database.begin() as connection:
        await StoreTable().on(database).put_many(connection, demo_stores(), BEGIN_MS)


def _environment(redis: str, database: str) -> dict[str, str]:
    """This process's environment with the demo's settings in the place of any others. A small
    batch and a short lease make a run long enough to be killed in, and its takeover quick."""
    settings = ("SOLOCRON_", "REDIS_", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return kept | {
        "REDIS_URL": redis, "DATABASE_URL": database,
        "SOLOCRON_HOST": "127.0.0.1", "SOLOCRON_PORT": "0", "SOLOCRON_LOG_FORMAT": "json",
        "SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE": SCHEDULES["store-auto-close"],
        "SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE": SCHEDULES["store-open-reminder"],
        "SOLOCRON_BATCH": "1", "SOLOCRON_LEASE": "1", "SOLOCRON_SWEEP": "0.25",
        "SOLOCRON_CATCH_UP": "86400", "SOLOCRON_GRACE": str(GRACE_S),
    }  # fmt: skip


async def _spawn(workers: list[Worker], board: Board, environment: Mapping[str, str]) -> None:
    """Start the processes into `workers`, and wait until all have loaded."""
    loop = asyncio.get_running_loop()

    def on_line(worker: Worker, line: Mapping[str, Any]) -> None:
        board.log_line(worker.name, line, loop.time())

    def on_end(worker: Worker) -> None:
        board.say(f"       worker {worker.name} (pid {worker.pid}) is gone", "bold red")

    for name in WORKERS:
        workers.append(await Worker.spawn(name, environment, on_line, on_end))
    await asyncio.gather(*(each.loaded() for each in workers))


def _watcher(workers: Sequence[Worker], board: Board) -> Watcher:
    loop = asyncio.get_running_loop()
    return Watcher(
        list(city_of()), workers,
        on_event=lambda event: board.notification(event, loop.time()),
        on_move=lambda old, new: board.say(
            f"       client lost worker {old.name}, resumes on {new.name} where it was", "bold"
        ),
    )  # fmt: skip


async def _stop(workers: Sequence[Worker]) -> None:
    await asyncio.gather(*(each.stop() for each in workers))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# -- the show ------------------------------------------------------------------------------


async def _perform(stage: _Stage, once: bool) -> int:
    """Play, stop the workers in order, judge; returns the exit code."""
    interrupted = False
    try:
        await _play(stage, once)
    except asyncio.CancelledError:
        interrupted = True
    if not interrupted and not stage.alive():
        stage.board.say("No worker is left.", "bold red")
    survived = bool(stage.alive())
    await _wind_down(stage)
    facts = await _facts(stage, until_ms=END_MS if once and not interrupted else 0)
    result = verdict(facts)
    print_verdict(stage.console, result)
    if interrupted and (once or not result.ticks):
        return _INTERRUPTED
    return 0 if result.is_good and survived else 1


async def _play(stage: _Stage, once: bool) -> None:
    """Print what happens until no worker is left or, if `once`, the last tick has run."""
    wanted = set(_due(stage.ready_ms, dict.fromkeys(SCHEDULES, END_MS)))
    while stage.alive():
        await asyncio.sleep(_LOOK_S)
        now_s = asyncio.get_running_loop().time()
        stage.board.flush(now_s, [each.name for each in stage.alive()])
        if once and (wanted <= stage.board.printed or stage.clock.now_ms() > END_MS + _LATE_MS):
            return


async def _wind_down(stage: _Stage) -> None:
    """Stop the workers, the client's one last, when the client has all there is."""
    last = stage.watcher.worker
    await _stop([each for each in stage.workers if each is not last])
    outbox, stores = Outbox(stage.database), list(stage.watcher.received)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CAUGHT_UP_WITHIN_S
    while loop.time() < deadline and not stage.watching.done():
        if await outbox.heads(stores) == stage.watcher.last():
            break
        await asyncio.sleep(_LOOK_S)
    await _stop(stage.workers)
    await stage.watching
    stage.board.flush(float("inf"), ())


async def _facts(stage: _Stage, until_ms: int) -> Facts:
    """What the three witnesses say. Due is every tick since the first worker served, up to the
    job's last one in the ledger and at least to `until_ms`."""
    columns = (job_runs.c.job, job_runs.c.tick, job_runs.c.state, job_runs.c.attempt)
    async with stage.database.connect() as connection:
        rows = (await connection.execute(select(*columns))).all()
    ledger = {Due(row.job, row.tick): Record(row.state, row.attempt) for row in rows}
    until = {job: max([until_ms, *(d.tick for d in ledger if d.job == job)]) for job in SCHEDULES}
    since = min([stage.ready_ms, *(due.tick - 1 for due in ledger)])
    board, dead = stage.board, {each.name for each in stage.workers if each.has_died}
    return Facts(
        due=_due(since, until),
        ledger=ledger,
        starts=board.starts,
        given_up=board.given_up | {each for each in board.starts if each.worker in dead},
        sent=await Outbox(stage.database).heads(list(stage.watcher.received)),
        received=stage.watcher.received,
    )


def _due(since_ms: float, until_ms: Mapping[str, int]) -> list[Due]:
    """Every tick of every job in (since, until]."""
    return [
        Due(job, tick)
        for job, expression in SCHEDULES.items()
        for tick in Calendar(expression).between(since_ms, until_ms[job], 1_000_000)
    ]
