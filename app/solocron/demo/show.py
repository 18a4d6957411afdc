"""The demo: three workers, one Redis, a night that passes in half a minute, and a judge.

Everything is real and lives in one temporary folder: a redis-server, an SQLite database, three
worker processes with the built-in jobs, and a WebSocket client. Only the workers' wall clock runs
faster, so that half an hour passes in 2.4 s; leases stay in real time, and with `real_time` all of
it does (`demo.script`). At the end the ledger, the logs and the client's frames are compared
(`demo.verdict`).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from sqlalchemy import select

from solocron.clock import ScaledClock
from solocron.cron.ticks import Calendar
from solocron.demo.client import Watcher
from solocron.demo.processes import Redis, Worker
from solocron.demo.report import (
    WORKERS,
    Board,
    Props,
    print_intro,
    print_verdict,
    print_workers,
)
from solocron.demo.script import FAILING, Script, environment, script, shell_lines
from solocron.demo.stores import city_of, demo_stores
from solocron.demo.verdict import Due, Facts, Record, verdict
from solocron.storage.engine import Database
from solocron.storage.outbox import Outbox
from solocron.storage.tables import job_runs
from solocron.stores.table import StoreTable

_LATE_S = 7.2  # what has not run by then will not
_LOOK_S = 0.1
_CAUGHT_UP_WITHIN_S = 5.0
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def show(*, once: bool, real_time: bool = False, failing_job: bool = False) -> int:
    """Run the demo until Ctrl-C, or to its end if `once`; returns the exit code. `real_time`: its
    clock is the machine's; `failing_job`: one more job, which fails.

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
        play = script(real_time=real_time, failing_job=failing_job)
        async with _stage(Console(highlight=False), play) as stage:
            return await _perform(stage, once)
    except asyncio.CancelledError:
        return _INTERRUPTED
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@dataclass(frozen=True)
class _Stage:
    """What the show is made of. Times are the show's, in UTC epoch ms: when the first worker
    served, and of the last tick of `--once`."""

    play: Script
    console: Console
    board: Board
    clock: ScaledClock
    database: Database
    workers: Sequence[Worker]
    watcher: Watcher
    watching: asyncio.Task[None]
    ready_ms: float
    end_ms: int

    def alive(self) -> list[Worker]:
        return [each for each in self.workers if each.is_alive]


@asynccontextmanager
async def _stage(console: Console, play: Script) -> AsyncIterator[_Stage]:
    """Start everything; at the end, and also when a start fails, stop and remove it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="solocron-demo-")))
        redis = Redis(folder)
        stack.push_async_callback(redis.stop)
        await redis.start()
        print_intro(console, len(city_of()), play)
        url = f"sqlite:///{folder / 'demo.db'}"
        database = Database(url)
        stack.push_async_callback(database.close)
        variables = environment(play, redis.url, url)
        props = _props(folder, play, variables)
        await _fill(database, play.begin_ms or int(time.time() * 1000))
        board = Board(console, city_of(), play.moment)
        workers: list[Worker] = []
        stack.push_async_callback(_stop, workers)
        await _spawn(workers, board, variables)
        begin_ms, clock = _clock(play)

        async def start(worker: Worker) -> float:
            await worker.start(clock, props.failing)
            return scaled.now_ms()

        scaled = ScaledClock(**clock)
        ready_ms = min(await asyncio.gather(*(start(each) for each in workers)))
        print_workers(console, redis, workers, props)
        keeping = asyncio.create_task(redis.keep(lambda text: board.say(f"       {text}", "bold")))
        stack.push_async_callback(_cancel, keeping)
        watcher = _watcher(workers, board)
        watching = asyncio.create_task(watcher.run())
        stack.push_async_callback(_cancel, watching)
        yield _Stage(
            play, console, board, scaled, database, workers, watcher, watching, ready_ms,
            int(begin_ms) + play.lasts_ms,
        )  # fmt: skip


def _clock(play: Script) -> tuple[float, dict[str, float]]:
    """When the show begins, by its own clock, if that is now; and what a `ScaledClock` is made
    of."""
    now_ms = time.time() * 1000
    begin_ms = now_ms if play.begin_ms is None else float(play.begin_ms)
    return begin_ms, {"anchor_ms": now_ms, "start_ms": begin_ms, "rate": play.rate}


def _props(folder: Path, play: Script, variables: Mapping[str, str]) -> Props:
    """Write the files that a viewer has to do with."""
    setup, fault = folder / "env", folder / "fail"
    if play.is_real_time:
        setup.write_text(shell_lines(variables))
    schedule = play.schedules.get(FAILING)
    if schedule is not None:
        fault.touch()
    return Props(
        setup=str(setup) if play.is_real_time else "",
        failing=None if schedule is None else {"schedule": schedule, "file": str(fault)},
    )


async def _fill(database: Database, now_ms: int) -> None:
    await database.migrate()
    async with database.begin() as connection:
        await StoreTable().on(database).put_many(connection, demo_stores(), now_ms)


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
    facts = await _facts(stage, until_ms=stage.end_ms if once and not interrupted else 0)
    result = verdict(facts)
    print_verdict(stage.console, result)
    if interrupted and (once or not result.ticks):
        return _INTERRUPTED
    return 0 if result.is_good and survived else 1


async def _play(stage: _Stage, once: bool) -> None:
    """Print what happens until no worker is left or, if `once`, the last tick has run."""
    schedules, late_ms = stage.play.schedules, _LATE_S * 1000 * stage.play.rate
    wanted = set(_due(schedules, stage.ready_ms, dict.fromkeys(schedules, stage.end_ms)))
    while stage.alive():
        await asyncio.sleep(_LOOK_S)
        now_s = asyncio.get_running_loop().time()
        stage.board.flush(now_s, [each.name for each in stage.alive()])
        is_over = wanted <= stage.board.printed or stage.clock.now_ms() > stage.end_ms + late_ms
        if once and is_over:
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
    schedules = stage.play.schedules
    until = {job: max([until_ms, *(d.tick for d in ledger if d.job == job)]) for job in schedules}
    since = min([stage.ready_ms, *(due.tick - 1 for due in ledger)])
    board, dead = stage.board, {each.name for each in stage.workers if each.has_died}
    return Facts(
        due=_due(schedules, since, until),
        ledger=ledger,
        starts=board.starts,
        given_up=board.given_up | {each for each in board.starts if each.worker in dead},
        sent=await Outbox(stage.database).heads(list(stage.watcher.received)),
        received=stage.watcher.received,
        may_fail=frozenset({FAILING}),
    )


def _due(
    schedules: Mapping[str, str], since_ms: float, until_ms: Mapping[str, int]
) -> list[Due]:  # fmt: skip
    """Every tick of every job in (since, until]."""
    return [
        Due(job, tick)
        for job, expression in schedules.items()
        for tick in Calendar(expression).between(since_ms, until_ms[job], 1_000_000)
    ]
