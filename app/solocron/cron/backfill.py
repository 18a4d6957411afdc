"""Runs the ticks of the past that have no run that succeeded, oldest first, each once.

The ledger arbitrates, so any number of servers and command lines may do so at once: they take
turns, by the job's lock. The schedule goes first: a tick of its own that is due meanwhile is run
before the next one. A backfill settles nothing in Redis, so neither does the schedule run a tick
again for it, nor leave one out. One that is interrupted is resumed by the next that is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.manual import Asked
from solocron.cron.outcome import Outcome
from solocron.cron.runner import Runner
from solocron.cron.sweep import decide
from solocron.errors import InvalidInput, LockUnavailable, StorageUnavailable
from solocron.ledger import Ledger, State
from solocron.locks.manager import LockManager

MOST_TICKS = 10_000
_MAX_MS = 4_102_444_800_000  # the year 2100
_AGAIN_S = 0.5
_GRACE_MS = 1000.0


@dataclass(frozen=True)
class Backfilled:
    """How far a backfill is. `ticks`: those of the span; `wanted`: those of them without a run that
    succeeded when it began (UTC epoch ms). Of these `succeeded` and `failed` were run here,
    `elsewhere` were run by others meanwhile."""

    ticks: int
    wanted: Sequence[int]
    succeeded: int = 0
    failed: int = 0
    elsewhere: int = 0

    @property
    def done(self) -> int:
        """How many of the wanted ticks are settled."""
        return self.succeeded + self.failed + self.elsewhere

    def with_(self, outcome: Outcome) -> Backfilled:
        """As it is after one more tick."""
        state = outcome.state if outcome.state in ("succeeded", "failed") else "elsewhere"
        counts = {each: getattr(self, each) for each in ("succeeded", "failed", "elsewhere")}
        return Backfilled(self.ticks, self.wanted, **{**counts, state: counts[state] + 1})


Told = Callable[[Backfilled], None]


def span_ms(job: Job, since: datetime, until: datetime, now_ms: float) -> tuple[int, int]:
    """From when to when, in UTC epoch ms; times without a zone are in the job's. Raises
    InvalidInput for a span that is empty, or not over."""
    try:
        first, last = (
            job.calendar.instant(each)[0] if each.tzinfo is None else int(each.timestamp() * 1000)
            for each in (since, until)
        )
    except (OverflowError, ValueError):
        first = last = -1
    if not 0 < first <= last < _MAX_MS:
        raise InvalidInput(f"backfill from {since} to {until}: give a time, and one after it")
    if last > now_ms:
        raise InvalidInput(f"backfill to {until}: give a time that has come; the rest is scheduled")
    return first, last


def ticks_of(job: Job, first_ms: int, last_ms: int) -> list[int]:
    """The nominal ticks of [first_ms, last_ms]. Raises InvalidInput for more than 10,000."""
    ticks = job.calendar.between(first_ms - 1, last_ms, MOST_TICKS + 1)
    if len(ticks) > MOST_TICKS:
        raise InvalidInput(
            f"backfill of job {job.name!r}: there are more than {MOST_TICKS} ticks in the span; "
            f"give a shorter one: the first {MOST_TICKS} go to "
            f"{job.calendar.local(ticks[MOST_TICKS - 1]).isoformat()}"
        )
    return ticks


def check_kept(job: Job, first_ms: int, now_ms: float, *, kept_ms: float, most: int) -> None:
    """Raise InvalidInput for a span that begins before a job's runs are kept, for `kept_ms` and at
    most so many of them: what was run there would be forgotten, and run once more."""
    lost = f"backfill of job {job.name!r}: without a database "
    if first_ms < now_ms - kept_ms:
        raise InvalidInput(
            f"{lost}runs are kept for {kept_ms / 86_400_000:g} days: begin later, or set "
            "SOLOCRON_HISTORY higher"
        )
    ticks = job.calendar.between(first_ms - 1, int(now_ms), MOST_TICKS)
    if len(ticks) > most:
        raise InvalidInput(
            f"{lost}the newest {most} runs of a job are kept: begin at "
            f"{job.calendar.local(ticks[-most]).isoformat()} or later"
        )


def wanted_of(ticks: Sequence[int], states: Mapping[int, State]) -> list[int]:
    """Those without a run that succeeded."""
    return [tick for tick in ticks if states.get(tick, ("", 0))[0] != "succeeded"]


class Backfill:
    """Of one job. `flush` publishes what a run wrote. Every method may raise LockUnavailable or
    StorageUnavailable."""

    def __init__(
        self, job: Job, *, runner: Runner, locks: LockManager, ledger: Ledger, clock: Clock,
        flush: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._job = job
        self._runner = runner
        self._locks = locks
        self._ledger = ledger
        self._clock = clock
        self._flush = flush

    async def plan(self, first_ms: int, last_ms: int) -> tuple[Backfilled, Mapping[int, State]]:
        """What there is to do, and how its ticks went before."""
        ticks = ticks_of(self._job, first_ms, last_ms)
        states = await self._ledger.states(self._job.name, first_ms, last_ms)
        return Backfilled(len(ticks), wanted_of(ticks, states)), states

    async def run(
        self, plan: Backfilled, states: Mapping[int, State], *, by: str, told: Told | None
    ) -> Backfilled:
        """Do it. Cancelled, it gives back the run that it is at."""
        found = plan
        for tick in plan.wanted:
            state, attempt = states.get(tick, ("", 0))
            again = attempt if state == "failed" else 0
            asked = Asked(self._job.params, by, goes_on=True, again=again)
            found = found.with_(await self._see_to(tick, asked))
            await self._flush()
            if told is not None:
                told(found)
        return found

    async def _see_to(self, tick: int, asked: Asked) -> Outcome:
        """Run one tick, or wait until it was run elsewhere."""
        while True:
            await self._give_way()
            outcome = await self._runner.run_tick(self._job, tick, origin="backfill", asked=asked)
            if outcome.state in ("succeeded", "failed") or outcome.reason == "done":
                return outcome
            if outcome.reason == "redis-down":
                raise LockUnavailable(outcome.detail)
            if outcome.reason == "database-down":
                raise StorageUnavailable(outcome.detail)
            await asyncio.sleep(_AGAIN_S)  # its lock is held, or was lost

    async def _give_way(self) -> None:
        """Run the schedule's own tick if one is due: the lock is hardly free for it otherwise."""
        try:
            survey = await self._locks.inspect(self._job.lock_key)
        except LockUnavailable:
            return
        if survey.settled is None or survey.paused:
            return
        now_ms = self._clock.now_ms()
        due = decide(self._job, survey.settled, now_ms, grace_ms=_GRACE_MS).tick
        if due is not None:
            await self._runner.run_tick(self._job, due, origin="sweep")
