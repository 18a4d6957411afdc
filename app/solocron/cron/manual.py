"""A run that was asked for by hand: how who asked learns that it began, or did not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run

_KNOWN_WITHIN_S = 5.0


class ManualRun:
    """Made on the running loop. `job` is the one to run for it: its body tells that it began."""

    def __init__(self, job: Job, tick: int) -> None:
        self.tick = tick
        self.job = replace(job, body=self._begin)
        self._body = job.body
        self._known: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()

    async def _begin(self, run: Run) -> Mapping[str, int] | None:
        self.settle(None)
        return await self._body(run)

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
