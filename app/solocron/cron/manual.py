"""A run that was asked for by hand: what for and by whom, and how who asked learns that it began,
or did not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.threads import is_plain

_KNOWN_WITHIN_S = 5.0


@dataclass(frozen=True)
class Asked:
    """`params` are all of the run's, checked; `by` is who asked ('': unknown). `goes_on`: another
    server takes the run over when this one stops; otherwise it ends with who asked for it."""

    params: Mapping[str, Any]
    by: str = ""
    goes_on: bool = False
    again: int = 0  # of a backfill: the attempt with which the run failed before


def own_tick(ms: float) -> int:
    """The tick of a run by hand that is asked for at `ms`. A schedule's ticks are whole seconds,
    and it is none: the two never share a row of the ledger."""
    tick = int(ms)
    return tick if tick % 1000 else tick + 1


class ManualRun:
    """Made on the running loop. `job` is the one to run for it: its body tells that it began, with
    its tick."""

    def __init__(self, job: Job, tick: int) -> None:
        self.tick = tick
        self.job = replace(job, body=self._begin_plain if is_plain(job.body) else self._begin)
        self._body = job.body
        self._loop = asyncio.get_running_loop()
        self._known: asyncio.Future[Outcome | None] = self._loop.create_future()

    async def _begin(self, run: Run) -> Any:
        self._began(run)
        return await self._body(run)

    def _begin_plain(self, run: Run) -> Any:
        self._loop.call_soon_threadsafe(self._began, run)
        return self._body(run)

    def _began(self, run: Run) -> None:
        self.tick = run.tick
        self.settle(None)

    def settle(self, outcome: Outcome | None) -> None:
        """Have `outcome()` return this, unless something else is known already."""
        if not self._known.done():
            self._known.set_result(outcome)

    def ended(self, task: asyncio.Task[Outcome]) -> None:
        """Its task is done."""
        if task.cancelled():
            self.settle(Outcome("skipped", "this server is going away"))
        elif (error := task.exception()) is not None:
            self.settle(Outcome("failed", f"{type(error).__name__}: {error}"))
        else:
            self.settle(task.result())

    async def outcome(self) -> Outcome | None:
        """How it ended without having begun; None as soon as it has begun, or when neither is known
        within 5 s."""
        done, _ = await asyncio.wait([self._known], timeout=_KNOWN_WITHIN_S)
        return self._known.result() if done else None
