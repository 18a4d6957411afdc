"""What the sweep should run: pure decisions over what Redis or the ledger says of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solocron.cron.job import Job
from solocron.locks.results import Survey, token_tick

ON_TIME_MS = 5_000
MAX_MISSED = 100
_MAX_TICKS_PER_CLAIM = 1000


@dataclass(frozen=True)
class Decision:
    """`tick` is to be run now (None: nothing); `missed` are ticks too old to run."""

    tick: int | None = None
    missed: tuple[int, ...] = ()


def is_missed(job: Job, tick: int, now_ms: float, *, began: bool = False) -> bool:
    """Whether a tick is too old to be run: older than the catch-up window, which is for ticks that
    `began` too. One begun within `ON_TIME_MS` is on time, so that a job without catch-up is not
    lost to a busy moment."""
    window_ms = job.catch_up_ms if began or job.catch_up != "skip" else 0
    return tick + job.delay_ms < now_ms - max(window_ms, ON_TIME_MS)


def decide(job: Job, settled: int, now_ms: float, *, grace_ms: float) -> Decision:
    """The newest tick due and not settled (all times in UTC epoch ms).

    `settled` is the newest settled tick. A tick younger than `grace_ms` is left to the triggers.
    Ticks outside the catch-up window are missed; at most `MAX_MISSED` of them are named.
    """
    if job.calendar.next_after(settled) > now_ms - grace_ms - job.delay_ms:
        return Decision()
    newest = job.latest_due(now_ms - grace_ms)
    if newest is None or newest <= settled:
        return Decision()
    if not is_missed(job, newest, now_ms):
        return Decision(newest)
    return Decision(None, tuple(job.calendar.between(settled, newest, MAX_MISSED)))


def ticks_to_run(job: Job, tick: int, *, settled: int, unfinished: Sequence[int]) -> list[int]:
    """The ticks to run by whoever may run `tick`, oldest first (UTC epoch ms).

    Before it come those of its catch-up window that are `unfinished` (they began, and their owner
    went silent) and, of a job that runs `every` tick, all after the newest `settled` one (-1:
    unknown). A backlog of more than 1,000 leaves its newer end, `tick` included, to the next claim.
    """
    oldest = tick - job.catch_up_ms
    before = {each for each in unfinished if oldest <= each < tick}
    if job.every and settled >= 0:
        since = max(settled, oldest - 1)
        before.update(job.calendar.between(since, tick - 1, _MAX_TICKS_PER_CLAIM))
    return [*sorted(before), tick][:_MAX_TICKS_PER_CLAIM]


def left_out(job: Job, tick: int, took_ms: float, now_ms: float) -> int:
    """The newest tick that a run of `tick` was in the way of, `tick` if of none: those that came
    while it ran for `took_ms`, counted from its own time on. One that met it only because it began
    late is still to be run, unless the job runs no tick late."""
    until_ms = now_ms if job.catch_up == "skip" else tick + job.delay_ms + took_ms
    return max(tick, job.latest_due(until_ms) or tick)


def is_next(job: Job, tick: int, settled: int) -> bool:
    """Whether no other tick is to be run before this one, or told of as missed, as far as the
    newest `settled` one tells (-1: unknown)."""
    return not job.every or job.calendar.next_after(settled) >= tick


def is_free(survey: Survey) -> bool:
    """Whether a claim could be granted: not paused, and no live owner or older server's lock."""
    if survey.paused:
        return False
    return not survey.owner or (token_tick(survey.owner) is not None and not survey.alive)
