"""Triggers and the sweep: they decide when a tick is tried, the runner what comes of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.manual import Asked, ManualRun, own_tick
from solocron.cron.outcome import Outcome
from solocron.cron.reserving import Reserving
from solocron.cron.runner import Runner
from solocron.cron.sweep import Decision, decide, is_free, is_missed
from solocron.cron.triggers import Trigger
from solocron.errors import ConfigError, LockUnavailable, StorageUnavailable
from solocron.ledger import Expired, Ledger
from solocron.locks.manager import LockManager
from solocron.locks.results import Survey

log = logging.getLogger("solocron.cron")

_AT_ONCE = 500  # jobs: meanwhile neither this loop nor Redis does anything else

_T = TypeVar("_T")


class Scheduler:
    """Hosts the jobs on this event loop. `sweep_s` is the pause between sweeps in s; for three of
    them locks stay reserved.

    The sweep catches what triggers miss: ticks nobody ran, and runs whose owner went silent.
    Raises ConfigError for two jobs of one name.
    """

    def __init__(
        self, jobs: Sequence[Job], *, runner: Runner, locks: LockManager, ledger: Ledger,
        clock: Clock, sweep_s: float = 5.0,
    ) -> None:  # fmt: skip
        self._jobs: dict[str, Job] = {}
        for job in jobs:
            if self._jobs.setdefault(job.name, job) is not job:
                raise ConfigError(f"two jobs are named {job.name!r}: give each its own name")
        self._runner = runner
        self._locks = locks
        self._ledger = ledger
        self._clock = clock
        self._sweep_s = sweep_s
        self._reserving = Reserving(locks, clock, sweep_s)
        self._triggers: list[Trigger] = []
        self._running: dict[asyncio.Task[Outcome], Job] = {}
        self._by_hand: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._started_ms = clock.now_ms()
        self._floors: dict[str, int] = {}
        self._missed: dict[str, int] = {}
        self.paused: set[str] = set()  # as of the last sweep that Redis answered

    def start(self) -> None:
        """Arm every job's trigger and begin to sweep. Does nothing when started."""
        if self._sweeper is not None:
            return
        for trigger in self._arm():
            trigger.start()
        self._sweeper = asyncio.create_task(self._sweep_forever(), name="sweep")

    def _arm(self) -> Sequence[Trigger]:
        """A trigger of each job, which is still to be started."""
        self._started_ms = self._clock.now_ms()
        self._triggers = [
            Trigger(
                job.calendar, self._clock, partial(self._fire, job), delay_ms=job.delay_ms,
                since_ms=self._started_ms,
            )
            for job in self._jobs.values()
        ]  # fmt: skip
        return self._triggers

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
        if under_way := {*self._running, *self._by_hand}:
            await asyncio.wait(under_way, timeout=grace_s)
        for task, job in list(self._running.items()):
            log.warning("Handing the %s cron over: it did not finish in time.", job.title)
            task.cancel()
        for asked in list(self._by_hand):
            log.warning("Cancelling a %s: it did not finish in time.", asked.get_name())
            asked.cancel()
        if under_way := {*self._running, *self._by_hand}:
            await asyncio.wait(under_way)

    @property
    def running(self) -> int:
        """How many ticks are being tried or run here."""
        return len(self._running)

    def _fire(self, job: Job, tick: int) -> None:
        if not is_missed(job, tick, self._clock.now_ms()):  # else the sweep says so
            self._try(job, tick)

    def run_now(self, job: Job, asked: Asked) -> ManualRun | None:
        """Run a job beside its schedule; None unless this scheduler is running. It is skipped as
        held while the job is tried or run here."""
        if self._sweeper is None:
            return None
        run = ManualRun(job, own_tick(self._clock.now_ms()))
        if self._is_running(job):
            run.settle(Outcome("skipped", "held", detail="this server runs it"))
            return run
        work = self._runner.run_tick(run.job, run.tick, origin="manual", asked=asked)
        task = self._own(job, run.tick, work)
        task.add_done_callback(run.ended)
        return run

    async def do(self, work: Coroutine[Any, Any, _T], what: str) -> _T:
        """Do what was asked for by hand: a stop waits for it, too, and then cancels it. Raises
        ConfigError unless this scheduler is running."""
        if self._sweeper is None:
            work.close()
            raise ConfigError(f"{what}: the service stops: ask another, or start it again")
        task = asyncio.create_task(work, name=what)
        self._by_hand.add(task)
        task.add_done_callback(self._by_hand.discard)
        return await task

    def _try(self, job: Job, tick: int, origin: str = "schedule") -> None:
        self._own(job, tick, self._runner.run_tick(job, tick, origin=origin))

    def _own(
        self, job: Job, tick: int, work: Coroutine[Any, Any, Outcome]
    ) -> asyncio.Task[Outcome]:
        task = asyncio.create_task(work, name=f"{job.name}@{tick}")
        self._running[task] = job
        task.add_done_callback(self._ended)
        return task

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
        """Look once at every job: one Redis round trip for up to 500 of them, or the ledger while
        Redis is down."""
        jobs = list(self._jobs.values())
        try:
            surveys = await self._survey(jobs)
        except LockUnavailable:
            margin = self._locks.margin_ms
            await self._sweep_ledger([job for job in jobs if job.runs_without_redis(margin)])
            return
        await self._reserving.sweep(jobs)
        now = self._clock.now_ms()
        seen = list(zip(jobs, surveys, strict=True))
        self.paused = {job.name for job, survey in seen if survey.paused}
        await self._learn_floors([job for job, survey in seen if survey.settled is None])
        for number, (job, survey) in enumerate(seen):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            settled = self._floors.get(job.name) if survey.settled is None else survey.settled
            if survey.settled is not None:  # should Redis forget it
                self._floors[job.name] = survey.settled
            if settled is not None and is_free(survey):
                await self._act(job, settled, now)
        try:
            await self._retake([job for job, survey in seen if survey.look and is_free(survey)])
        except StorageUnavailable as error:
            log.debug("no server looks into the ledger now: %s", error)

    async def _survey(self, jobs: Sequence[Job]) -> list[Survey]:
        """What Redis knows of each job. Raises LockUnavailable, without jobs, too."""
        surveys: list[Survey] = []
        for first in range(0, max(len(jobs), 1), _AT_ONCE):
            some = jobs[first : first + _AT_ONCE]
            surveys += await self._locks.survey([job.lock_key for job in some])
        return surveys

    async def _sweep_ledger(self, jobs: Sequence[Job]) -> None:
        """Without Redis: retake silent runs, and run newer ticks nobody began."""
        if not jobs:
            return
        now = self._clock.now_ms()
        await self._retake(jobs)
        latest = await self._ledger.latest_ticks(job.name for job in jobs)
        for job in jobs:
            settled = latest.get(job.name)
            await self._act(job, self._start_floor(job) if settled is None else settled, now)

    async def _retake(self, jobs: Sequence[Job]) -> None:
        """Take over the runs of which only the ledger knows that their owner went silent: because
        Redis is down, or because a later tick was settled before they began."""
        if not jobs:
            return
        now = self._clock.now_ms()
        since_ms = int(now - max(job.catch_up_ms for job in jobs))
        expired: dict[str, list[Expired]] = {}
        for each in await self._ledger.expired([job.name for job in jobs], since_ms):
            expired.setdefault(each.job, []).append(each)
        for job in jobs:
            silent = [
                each
                for each in expired.get(job.name, ())
                if not is_missed(job, each.tick, now, began=True)
            ]
            if not silent or self._is_running(job):
                continue
            scheduled = [each.tick for each in silent if each.origin == "schedule"]
            if scheduled:
                self._try(job, max(scheduled), "ledger")  # older ones are run before it
            else:
                self._try(job, silent[0].tick, "manual")

    async def _learn_floors(self, jobs: Sequence[Job]) -> None:
        """For jobs of which Redis knows no settled tick, ask the ledger once where to begin: at
        its newest tick, which may be unfinished, else (a first deployment) after this start."""
        unknown = [job for job in jobs if job.name not in self._floors]
        if not unknown:
            return
        try:
            latest = await self._ledger.latest_ticks(job.name for job in unknown)
        except StorageUnavailable as error:
            log.debug("nothing is known of %d jobs yet: %s", len(unknown), error)
            return
        for job in unknown:
            tick = latest.get(job.name)
            self._floors[job.name] = self._start_floor(job) if tick is None else tick - 1

    def _start_floor(self, job: Job) -> int:
        return int(self._started_ms) - job.delay_ms

    async def _act(self, job: Job, settled: int, now: float) -> None:
        since_start_ms = max(now - self._started_ms, 0.0)  # no trigger was here before
        grace_ms = min(1000.0, self._sweep_s * 200, since_start_ms)
        decision = decide(job, settled, now, grace_ms=grace_ms)
        if decision == Decision() or self._is_running(job):
            return
        if decision.tick is not None:
            self._try(job, decision.tick, "sweep")
        elif self._locks.skew.off:
            pass  # by a wrong clock nothing can be called too late
        elif decision.missed and decision.missed[-1] > self._missed.get(job.name, -1):
            await self._say_missed(job, decision.missed)

    async def _say_missed(self, job: Job, ticks: Sequence[int]) -> None:
        """Warn once of ticks nobody ran in time; the ledger knows better than a flushed Redis."""
        try:
            latest = (await self._ledger.latest_ticks([job.name])).get(job.name, -1)
        except StorageUnavailable:
            return  # the next sweep asks again
        self._missed[job.name] = ticks[-1]
        self._runner.say_missed(job, [tick for tick in ticks if tick > latest])

    def _is_running(self, job: Job) -> bool:
        return any(each is job for each in self._running.values())
