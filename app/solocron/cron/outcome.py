"""How a tick went on this server, and the one word for it: its verdict. Pure.

`ran`: begun on time, and done; `late`: done, but begun too late (see `late_after_ms`);
`recovered`: taken over from a silent owner, or run because a sweep found that nobody had;
`fallback`: run without Redis; `failed`: its attempts are used up; `lost`: this server had to let it
go. Of those not run here, `held`: another server runs it; `done`: it was run; `overlap`: the tick
before it still runs; `redis-down`: the job's policy is to skip then; `database-down`; `paused`;
`clock-skew`: its time has not come by another machine's clock; `missed`: older than the catch-up
window; `duplicate-prevented`: the lock was granted, or Redis away, and the ledger had the tick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from typing_extensions import TypeVar

from solocron.cron.job import Job
from solocron.cron.ticks import Calendar

SUCCEEDED = ("ran", "late", "recovered", "fallback")
BEGUN = (*SUCCEEDED, "failed", "lost")
SKIPPED = (
    "held", "done", "overlap", "redis-down", "database-down", "paused", "clock-skew", "missed",
    "duplicate-prevented",
)  # fmt: skip
VERDICTS = (*BEGUN, *SKIPPED)

T = TypeVar("T", default=Any)

_LATE_MS = (1_000, 30_000)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a tick went on this server.

    `tick`: whose run it was (UTC epoch ms; 0: none was begun); `result`: what its body returned.
    `state`: succeeded, failed, lost or skipped; `reason`: a skip reason or the error's text;
    `detail`: more about a skip, such as who holds the lock. `begun_ms`: when its body began here
    (UTC epoch ms; None: it did not), `ended_ms`: when it ended; `taken_over`: another server had
    begun it; `fallback`: without Redis; `by_ledger`: it was the ledger that refused it.
    """

    state: str
    reason: str | None = None
    attempt: int = 0
    duration_ms: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    detail: str = ""
    begun_ms: int | None = None
    ended_ms: int | None = None
    taken_over: bool = False
    fallback: bool = False
    by_ledger: bool = False
    tick: int = 0
    result: T | None = None


def late_after_ms(calendar: Calendar, tick: int) -> int:
    """From how many ms on a tick counts as begun late: 1 % of the time until the next one, but at
    least 1 s and at most 30 s."""
    least, most = _LATE_MS
    return min(max(least, (calendar.next_after(tick) - tick) // 100), most)


def verdict_of(job: Job, tick: int, outcome: Outcome, origin: str = "schedule") -> str:
    """One of `VERDICTS`. `origin` says why the tick was tried, as in `Runner.run_tick`."""
    if outcome.state in ("failed", "lost"):
        return outcome.state
    if outcome.state == "skipped":
        return "duplicate-prevented" if outcome.by_ledger else str(outcome.reason)
    if outcome.taken_over or origin in ("sweep", "ledger"):
        return "recovered"
    if outcome.fallback:
        return "fallback"
    begun_ms = tick if outcome.begun_ms is None else outcome.begun_ms
    late_ms = begun_ms - tick - job.delay_ms
    return "late" if late_ms > late_after_ms(job.calendar, tick) else "ran"
