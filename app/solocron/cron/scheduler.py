"""Triggers and the sweep: they decide when a tick is tried, the runner what comes of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from functools import partial

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.runner import Outcome, Runner
from solocron.cron.sweep import decide, is_free
from solocron.cron.triggers import Trigger
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.locks.manager import LockManager, Survey
from solocron.storage.runs import RunLedger

log = logging.getLogger("solocron.cron")


class Scheduler:
    """Hosts the jobs on this event loop. `sweep_s` is the pause between sweeps in s.

    The sweep catches what triggers miss: ticks nobody ran, and runs whose owner went silent.
    """

    def __init__(
        self, jobs: Sequence[Job], *, runner: Runner, locks: LockManager, ledger: RunLedger,
        clock: Clock, sweep_s: float = 5.0,
    ) -> None:  # fmt: skip
        self._jobs = {job.name: job for job in jobs}
        self._runner = runner
        self._locks = locks
        self._ledger = ledger
        self._clock = clock
        self._sweep_s = sweep_s
        self._triggers: list[Trigger] = []
        self._running: dict[asyncio.Task[Outcome], Job] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._fired: dict[str, int] = {}
        self._floor: dict[str, int] = {}
        self._warned: set[str] = set()

    def start(self) -> None:
        """Arm every job's trigger and begin to sweep. Does nothing when started."""
        if self._sweeper is not None:
            return
        for job in self._jobs.values():
            trigger = Trigger(job.calendar, self._clock, partial(self._fire, job))
            trigger.start()
            self._triggers.append(trigger)
        self._sweeper = asyncio.create_task(self._sweep_forever(), name="sweep")

    async def stop(self, grace_s: float) -> None:
        """No new ticks; running jobs get `grace_s` to finish, then are cancelled and handed over.

        Returns when every task has ended. Safe to call twice.
        """
        for trigger in self._triggers:
            trigger.stop()
        self._triggers.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        for task, job in list(self._running.items()):
            log.warning("Handing the %s cron over: it did not finish in time.", job.title)
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    @property
    def running(self) -> int:
        """How many ticks are being tried or run here."""
        return len(self._running)

    def _fire(self, job: Job, tick: int) -> None:
        if tick <= self._fired.get(job.name, -1):
            return  # the clock was set back: this tick was tried
        self._fired[job.name] = tick
        self._try(job, tick)

    def _try(self, job: Job, tick: int) -> None:
        task = asyncio.create_task(self._runner.run_tick(job, tick), name=f"{job.name}@{tick}")
        self._running[task] = job
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Outcome]) -> None:
        job = self._running.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("The %s cron broke: %s", job.title, error, exc_info=error)

    # -- sweep -----------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.sweep()
            except (LockUnavailable, StorageUnavailable) as error:
                log.debug("sweep skipped: %s", error)
            except Exception:
                log.exception("sweep failed; the next one tries again")
            await asyncio.sleep(self._sweep_s * random.uniform(0.8, 1.2))

    async def sweep(self) -> None:
        """Look once at every job: one Redis round trip, or the ledger while Redis is down."""
        jobs = list(self._jobs.values())
        try:
            surveys = await self._locks.survey([(job.lock_key, job.fingerprint) for job in jobs])
        except LockUnavailable:
            await self._sweep_ledger(jobs)
            return
        now = self._clock.now_ms()
        for job, survey in zip(jobs, surveys, strict=True):
            self._check_schedule(job, survey)
            settled = survey.settled
            if settled is None:
                settled = await self._floor_of(job, now)
            if is_free(survey):
                self._act(job, settled, now)

    async def _sweep_ledger(self, jobs: Sequence[Job]) -> None:
        """Without Redis: retake expired runs, and run newer ticks nobody began."""
        now = self._clock.now_ms()
        latest = await self._ledger.latest_ticks()
        oldest = int(now - max((job.catch_up_ms for job in jobs), default=0))
        for name, tick in await self._ledger.expired(oldest):
            job = self._jobs.get(name)
            if job is not None and tick >= now - job.catch_up_ms and not self._is_running(job):
                self._try(job, tick)
        for job in jobs:
            settled = latest.get(job.name)
            self._act(job, await self._floor_of(job, now) if settled is None else settled, now)

    async def _floor_of(self, job: Job, now: float) -> int:
        """The newest tick to take as settled when Redis knows none: what the ledger has, else
        (a first deployment) the tick before this server started."""
        if job.name not in self._floor:
            try:
                latest = (await self._ledger.latest_ticks()).get(job.name)
            except StorageUnavailable:
                return int(now)
            self._floor[job.name] = (
                latest - 1 if latest is not None else job.calendar.latest_at(now) or 0
            )
        return self._floor[job.name]

    def _act(self, job: Job, settled: int, now: float) -> None:
        if self._is_running(job):
            return
        decision = decide(job, settled, now, grace_ms=min(1000.0, self._sweep_s * 200))
        if decision.tick is not None:
            self._try(job, decision.tick)
        elif decision.missed and decision.missed[-1] > self._fired.get(job.name, -1):
            self._fired[job.name] = decision.missed[-1]
            log.warning(
                "The %s cron missed %d ticks: older than the catch-up window.", job.title,
                len(decision.missed), extra={"job": job.name, "reason": "missed"},
            )  # fmt: skip

    def _is_running(self, job: Job) -> bool:
        return any(each is job for each in self._running.values())

    def _check_schedule(self, job: Job, survey: Survey) -> None:
        if survey.schedule != job.fingerprint and job.name not in self._warned:
            self._warned.add(job.name)
            log.warning(
                "Job %s has schedule %r here and %r on another server: give all servers the same.",
                job.name, job.fingerprint, survey.schedule,
            )  # fmt: skip
