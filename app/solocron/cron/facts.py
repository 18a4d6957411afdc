"""What is known of a tick that is to be explained, and which tick is meant. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from solocron.cron.board import Presence
from solocron.cron.job import Job
from solocron.cron.journal import Entry
from solocron.cron.silence import is_silent, not_replaced
from solocron.cron.sweep import is_missed
from solocron.errors import InvalidInput
from solocron.ledger import KeptIn
from solocron.locks.results import Survey

_MAX_TEXT = 40
_MAX_MS = 4_102_444_800_000  # the year 2100
DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known. `redis` and `database` are what is wrong with either, '' if nothing is;
    `ledger_in` is where the ledger is; `note` is about the time asked for; `run` is its row, and
    `run_after` the next tick that its schedule began, if it has none; `ran_before`: the ledger has
    ticks of the job, `ran_earlier` one before this one; `has_code`: this process could run it. A
    server counts as silent after `silent_ms` without a sign, and ended runs are kept for `kept_ms`.
    """

    job: Job
    tick: int
    now_ms: float
    silent_ms: int
    kept_ms: int
    note: str = ""
    redis: str = ""
    database: str = ""
    ledger_in: KeptIn = "database"
    survey: Survey | None = None
    verdicts: Mapping[str, Entry]
    workers: Sequence[Presence]
    run: Mapping[str, Any] | None = None
    run_after: int | None = None
    ran_before: bool = True
    ran_earlier: bool = True
    has_code: bool = True

    def owner(self, name: str) -> Presence | None:
        """The server that the ledger calls `name`, if it is on the board."""
        return next((each for each in self.workers if each.worker.startswith(f"{name}:")), None)

    @property
    def is_tick(self) -> bool:
        """Whether the schedule has a tick then."""
        return self.job.calendar.next_after(self.tick - 1) == self.tick

    @property
    def due_ms(self) -> int:
        """When the tick's run may begin."""
        return self.tick + self.job.delay_ms

    @property
    def is_open(self) -> bool:
        """Whether the tick has come and, if nobody ran it, may still be run."""
        return self.due_ms <= self.now_ms and not is_missed(self.job, self.tick, self.now_ms)

    @property
    def is_over(self) -> bool:
        """Whether nobody will run the tick any more: it has been run, or one after it, or it is too
        old."""
        if self.run is not None:
            return bool(self.run["state"] != "running")
        settled = self.survey.settled if self.survey is not None else None
        is_passed = self.run_after is not None or (settled is not None and settled > self.tick)
        return not self.is_open or (is_passed and not self.job.every)

    @property
    def missing(self) -> Sequence[Presence]:
        """The silent servers that no other has replaced."""
        silent = {each.worker for each in self.workers if self.is_silent(each)}
        return not_replaced(self.workers, silent)

    @property
    def began_after_it(self) -> Sequence[Presence]:
        """The servers that are up, if all began after the tick of a job that never ran: then none
        of them will run it."""
        alive = [each for each in self.workers if not self.is_silent(each)]
        settled = self.survey is not None and self.survey.settled is not None
        later = all(each.started_ms >= self.due_ms for each in alive)
        return alive if later and not self.ran_before and not settled else ()

    def is_silent(self, worker: Presence) -> bool:
        """Whether a server has given no sign of life for too long."""
        return is_silent(worker, self.now_ms, self.silent_ms)


def asked_tick(job: Job, text: str | None, now_ms: float) -> tuple[int, str]:
    """The time `text` means, and what is to be said of it: ISO 8601 (in the job's zone unless it
    has one) or UTC epoch ms; None or 'latest': the newest tick that has come. Raises
    InvalidInput."""
    if text in (None, "latest"):
        newest = job.latest_due(now_ms)
        return (newest, "") if newest is not None else (job.calendar.next_after(now_ms), "")
    assert text is not None
    remedy = "give a time such as 2026-03-29T06:00, or UTC epoch ms, before the year 2100"
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError
        if text.isascii() and text.isdigit():
            ms, note = int(text), ""
        else:
            ms, note = _instant(job, datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise InvalidInput(f"tick is {text[:_MAX_TEXT]!r}: {remedy}") from None
    if not 0 < ms < _MAX_MS:
        raise InvalidInput(f"tick is {text!r}: {remedy}")
    return ms, note


def _instant(job: Job, given: datetime) -> tuple[int, str]:
    if given.tzinfo is not None:
        return round(given.timestamp() * 1000), ""
    ms, exists = job.calendar.instant(given)
    if exists or not 0 < ms < _MAX_MS:
        return ms, ""
    for gap in job.calendar.gaps(ms - DAY_MS, ms + DAY_MS):
        if gap.start <= given < gap.end:
            came = "; a tick of that time comes then" if gap.tick is not None else ""
            return gap.at_ms, (
                f"{given.isoformat()} does not exist in {job.calendar.zone}: the clocks are put on "
                f"from {gap.start:%H:%M} to {gap.end:%H:%M}{came}"
            )
    return ms, ""
