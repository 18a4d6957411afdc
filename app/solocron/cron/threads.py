"""Bodies that are plain functions: each run has a thread of its own.

A thread cannot be ended from outside. When the lease is lost, or the server stops, the body is told
by `run.ensure_leased()`, and the run counts as lost once the thread has ended, or when it is given
up: after the grace on a lost lease; a moment after the grace that a stop had already. What such a
thread goes on to write by `run.call` is refused by the fence; what it does elsewhere is not, so a
body asks `ensure_leased` before each step that matters. Threads are daemons: one that never ends
does not keep the process.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from solocron.cron.run import Run

MOST_THREADS = 64
_MOMENT_S = 1.0


def is_plain(body: Callable[..., Any]) -> bool:
    """Whether a body is a plain function, which must not run on the event loop."""
    asynchronous = inspect.iscoroutinefunction(body) or inspect.iscoroutinefunction(
        getattr(body, "__call__", None)  # noqa: B004  # its method, not whether it has one
    )
    return not asynchronous


class Threads:
    """Runs plain bodies, `MOST_THREADS` at a time; others wait for their turn. A thread whose lease
    was lost is given up after `grace_s`."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._places = asyncio.Semaphore(MOST_THREADS)

    async def run(self, body: Callable[[Run], Any], run: Run) -> Any:
        """What the body returns; raises what it raises. Cancelled, it waits for the thread to end
        as said above."""
        async with self._places:
            ended = _begin(body, run)
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError:
                await self._end(run, ended)
                raise
            result = ended.result()
            return await result if inspect.isawaitable(result) else result

    async def _end(self, run: Run, ended: asyncio.Future[Any]) -> None:
        lost = run.lease.lost.is_set()
        run.let_go(run.lease.reason if lost else "the server stops")
        try:
            await asyncio.wait([ended], timeout=self._grace_s if lost else _MOMENT_S)
        finally:
            if not ended.done():
                run.log.warning("Given up: a thread of the %s cron does not end.", run.job)
            elif not ended.cancelled():
                ended.exception()  # read here: nobody else will
            calls = list(run.calls)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


def _begin(body: Callable[[Run], Any], run: Run) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()

    def end(result: Any, error: BaseException | None) -> None:
        if error is None:
            ended.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            ended.set_exception(error)
        else:  # what ends a thread must not end the event loop
            ended.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = body(run)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(end, result, error)

    context = copy_context()
    thread = threading.Thread(
        target=context.run, args=(work,), name=f"{run.job}@{run.tick}", daemon=True
    )
    thread.start()
    return ended
