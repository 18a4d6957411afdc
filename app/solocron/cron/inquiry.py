"""Asks Redis, the servers' board and the ledger what became of a tick. Changes nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solocron.clock import Clock
from solocron.cron.board import Board, Presence
from solocron.cron.explain import explain
from solocron.cron.facts import Facts, asked_tick
from solocron.cron.job import Job
from solocron.cron.journal import Entry
from solocron.cron.run import Run
from solocron.cron.silence import is_silent
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, LockUnavailable, StorageUnavailable, UnknownJob
from solocron.ledger import KEEPERS, Ledger, PastRuns
from solocron.locks.manager import LockManager
from solocron.locks.results import Survey
from solocron.locks.run_records import MOST_KEPT

_WITHIN_S = 5.0
_SHOWN = 20
_NEAR = 100  # ticks
_UP = 10_000  # votes of a server that is up: more than all that are not have together


@dataclass(frozen=True)
class Limits:
    """For how long, in ms, a server may give no sign of life, ended runs are kept, and a tick that
    nobody ran may be run."""

    silent_ms: int
    kept_ms: int
    catch_up_ms: int


class Inquiry:
    """Looks up jobs and explains ticks. `jobs` are this process's; those of the other servers of
    the `environment` are known by what they tell of themselves."""

    def __init__(
        self, jobs: Mapping[str, Job], *, locks: LockManager, ledger: Ledger, past: PastRuns,
        board: Board, clock: Clock, environment: str, limits: Limits,
    ) -> None:  # fmt: skip
        self._jobs = jobs
        self._locks = locks
        self._ledger = ledger
        self._past = past
        self._board = board
        self._clock = clock
        self._environment = environment
        self._limits = limits

    @property
    def silent_ms(self) -> int:
        """For how long, in ms, a server may give no sign of life."""
        return self._limits.silent_ms

    async def job(self, name: str) -> Job:
        """The job of that name, of this process or else as most of the others run it; such a one
        has no body. Raises UnknownJob."""
        if name in self._jobs:
            return self._jobs[name]
        workers, why = await self._workers()
        known = {**self.others(workers), **self._jobs}
        if name in known:
            return known[name]
        raise UnknownJob(
            f"there is no job named {name[:100]!r}: "
            + (f"use one of {', '.join(sorted(known)[:_SHOWN])}" if known else "none is known here")
            + (f" (the other servers' are not known: {why})" if why else "")
        )

    async def own_job(self, name: str) -> Job:
        """The job of that name, if this process can run it. Raises UnknownJob."""
        if name not in self._jobs and await self.job(name):
            raise UnknownJob(
                f"{name} is run by other servers of this fleet, and its code is not here: name "
                "that in SOLOCRON_APP to run it from here"
            )
        return await self.job(name)

    async def fleet(self) -> tuple[dict[str, Job], int | None]:
        """The jobs that only the other servers have, and how many servers are up; None: Redis does
        not answer."""
        workers, why = await self._workers()
        now_ms = self._clock.now_ms()
        up = [each for each in workers if not is_silent(each, now_ms, self._limits.silent_ms)]
        return self.others(workers), None if why else len(up)

    def others(self, workers: Sequence[Presence]) -> dict[str, Job]:
        """The jobs that this process does not have and those servers have, by name: each as most
        that are up run it, without its body and its TTL."""
        now_ms = self._clock.now_ms()
        votes: dict[str, Counter[str]] = {}
        for each in workers:
            for name, fingerprint in each.schedules.items():
                if name not in self._jobs:
                    up = not is_silent(each, now_ms, self._limits.silent_ms)
                    votes.setdefault(name, Counter())[fingerprint] += _UP if up else 1
        jobs = {name: self._job(name, each.most_common(1)[0][0]) for name, each in votes.items()}
        return {name: job for name, job in jobs.items() if job is not None}

    async def explain(self, name: str, when: str | None = None) -> dict[str, Any]:
        """The explanation of a tick, as `explain.explain` gives it; `when` is for
        `explain.asked_tick`. Works with Redis or the database alone.

        Raises UnknownJob, InvalidInput, or StorageUnavailable when neither answers."""
        job = await self.job(name)
        tick, note = asked_tick(job, when, self._clock.now_ms())
        redis, ledger = await asyncio.gather(self._of_redis(job, tick), self._of_ledger(job, tick))
        (survey, verdicts, workers, down), (of_ledger, database) = redis, ledger
        if down and database:
            if self._ledger.kept_in == "redis":
                raise StorageUnavailable(f"Redis does not answer, and there is no database: {down}")
            raise StorageUnavailable(f"neither Redis nor the database answers: {down}; {database}")
        return explain(Facts(
            job=job, tick=tick, note=note, now_ms=self._clock.now_ms(), redis=down,
            database=database, ledger_in=self._ledger.kept_in, survey=survey,
            verdicts=verdicts, workers=workers, has_code=name in self._jobs, **of_ledger,
            silent_ms=self._limits.silent_ms, kept_ms=self._limits.kept_ms,
        ))  # fmt: skip

    async def _of_redis(
        self, job: Job, tick: int
    ) -> tuple[Survey | None, Mapping[str, Entry], Sequence[Presence], str]:
        try:
            survey = await self._locks.inspect(job.lock_key)
            verdicts = await self._board.verdicts(job, tick)
            workers = await self._board.workers()
        except LockUnavailable as error:
            return None, {}, [], str(error)
        return survey, verdicts, workers, ""

    async def _of_ledger(self, job: Job, tick: int) -> tuple[Mapping[str, Any], str]:
        """The `run` of a tick, else the tick `run_after` it and whether the job `ran_before`, and
        `ran_earlier`; or why that is not known."""
        try:
            async with asyncio.timeout(_WITHIN_S):
                rows = await self._ledger.history(job.name, 1, tick=tick)
                if rows or tick > self._clock.now_ms():
                    return {"run": rows[0] if rows else None}, ""
                ran = bool(await self._ledger.latest_ticks([job.name]))
                after = await self._run_after(job, tick) if ran else None
                earlier = after is None or await self._ran_earlier(job, tick)
                return {"ran_before": ran, "run_after": after, "ran_earlier": earlier}, ""
        except StorageUnavailable as error:
            return {}, str(error)
        except TimeoutError:
            who = KEEPERS[self._ledger.kept_in]
            return {}, f"{who} gave no answer within {_WITHIN_S:g} s"

    async def _ran_earlier(self, job: Job, tick: int) -> bool:
        """Whether its schedule began a tick before this one; also if that may be, and is not kept
        any more."""
        rows = await self._past.page(job.name, _SHOWN, tick)
        if rows or self._past.kept_in == "database":
            return len(rows) == _SHOWN or any(each["origin"] == "schedule" for each in rows)
        kept = await self._ledger.states(job.name, tick, int(self._clock.now_ms()))
        return len(kept) >= MOST_KEPT

    async def _run_after(self, job: Job, tick: int) -> int | None:
        """The next tick that the schedule began, looked for in ever longer spans of time."""
        calendar, now_ms = job.calendar, int(self._clock.now_ms())
        length, since = _NEAR * (calendar.next_after(tick) - tick), tick + 1
        while since <= now_ms:
            found = await self._ledger.states(job.name, since, since + length)
            ticks = [each for each in found if calendar.next_after(each - 1) == each]
            for each in ticks[:_SHOWN]:  # a backfill has such ticks, too
                rows = await self._ledger.history(job.name, 1, tick=each)
                if rows and rows[0]["origin"] == "schedule":
                    return each
            since, length = since + length + 1, length * 10
        return None

    async def _workers(self) -> tuple[Sequence[Presence], str]:
        try:
            return await self._board.workers(), ""
        except LockUnavailable as error:
            return [], str(error)

    def _job(self, name: str, fingerprint: str) -> Job | None:
        expression, _, zone = fingerprint.rpartition(" ")
        try:
            return Job(
                name=name, calendar=Calendar(expression, zone), body=_nothing,
                environment=self._environment, catch_up_ms=self._limits.catch_up_ms,
            )  # fmt: skip
        except ConfigError:
            return None


async def _nothing(run: Run) -> None:
    raise AssertionError("the job of another server is only looked at")
