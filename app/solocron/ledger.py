"""What a run ledger is: one run per (job, tick), and which attempt of it is current.

`cron` sees no more of it than this. `storage.runs.RunLedger` keeps it in the database, where a
run's effects can be written under the same fence. A ledger elsewhere has all but that: its `room`
and `fenced` raise NoDatabase, and what is kept of a run only to be read it may keep for as long as
it chooses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

KeptIn = Literal["database", "redis"]
_UNKEPT = re.compile("[\x00\ud800-\udfff]")
KEEPERS: Mapping[KeptIn, str] = {"database": "the database", "redis": "Redis"}


@dataclass(frozen=True)
class Verdict:
    """What the ledger says to a server that wants a tick.

    `run` with its attempt; `done` when the tick has finished; `held` while its lease lives.
    `params` are those the run was begun with, as JSON.
    """

    kind: Literal["run", "done", "held"]
    attempt: int = 0
    owner: str = ""
    params: str | None = None


@dataclass(frozen=True)
class RunKey:
    """One attempt of one run."""

    job: str
    tick: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.job} tick {self.tick}"


class Span(NamedTuple):
    """How scheduled runs went whose ticks lie in one span of time from `since` on: how many are in
    which state, and how late, in ms, the latest of them began."""

    since: int
    states: Mapping[str, int]
    late_ms: int


class Expired(NamedTuple):
    """A running run whose lease ended, and why it was begun: `schedule` or `manual`."""

    job: str
    tick: int
    origin: str


State = tuple[str, int]  # of a run, and its attempt


def kept_text(text: str, most: int) -> str:
    """A text of a job's or a user's as every ledger can keep it, `most` characters of it: NUL and
    lone surrogates, which some databases refuse, are written as escapes."""
    return _UNKEPT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)[:most]


class Ledger(Protocol):
    """Every method may raise StorageUnavailable. Times in ms, leases by the ledger's own clock."""

    @property
    def kept_in(self) -> KeptIn:
        """What is away when it gives no answer."""

    @property
    def is_lost(self) -> bool:
        """Whether that is known to be away, and has been said."""

    async def begin_next(
        self, job: str, tick: int, *, owner: str, now_ms: int, lease_ms: int, fallback: bool = False
    ) -> bool:
        """Begin a scheduled tick as nearly every one is: as its first attempt, with none of the job
        before it that began and did not end. False: it was not begun, and `begin` is to be asked,
        once `unfinished` was. Cancelled, it gives back what it began."""

    async def begin(
        self, job: str, tick: int, *, owner: str, now_ms: int, lease_ms: int, max_attempts: int,
        origin: str = "schedule", fallback: bool = False, params: str | None = None,
        asked_by: str = "", fresh: bool = False, again: int = 0,
    ) -> Verdict:  # fmt: skip
        """Ask for a tick: one server gets `run`. A run whose lease ended is taken over with
        attempt + 1; when that was the last of `max_attempts` and its owner went silent, the run is
        closed as failed. `fallback`: without Redis.

        `params` (JSON) and `asked_by` are kept with a run by hand. `fresh`: only a run that nobody
        began will do. `again`: a run that failed with this attempt is opened anew, as the next."""

    async def retry(self, key: RunKey, *, owner: str, lease_ms: int, fallback: bool) -> bool:
        """Open the next attempt of a failed one; False when another server already did."""

    async def heartbeat(self, key: RunKey, lease_ms: int, *, progress: str | None = None) -> bool:
        """Extend the lease, and note the run's progress (JSON), if there is news of it; False when
        the attempt is no longer current."""

    async def hand_over(self, key: RunKey, *, stopping: bool = False) -> None:
        """End the lease now; `stopping`: this attempt does not count."""

    async def finish(
        self, key: RunKey, *, now_ms: int, duration_ms: int,
        result: str | None = None, error: str | None = None, progress: str | None = None,
    ) -> bool:  # fmt: skip
        """Write how the run ended, with its result and its last progress (JSON); False when the
        attempt is no longer current. May be asked again."""

    async def answers(self) -> None:
        """Raise StorageUnavailable unless the ledger answers."""

    def room(self) -> AbstractAsyncContextManager[None]:
        """A place among the transactions of bodies. Raises NoDatabase where there is none."""

    def fenced(self, key: RunKey) -> AbstractAsyncContextManager[AsyncConnection]:
        """A write transaction while the attempt is current, else StaleAttempt. Raises NoDatabase
        where there is none."""

    async def latest_ticks(self, jobs: Iterable[str]) -> dict[str, int]:
        """Of each job, up to where its scheduled ticks are known: the newest that began."""

    async def unfinished(
        self, job: str, *, since_ms: int, before_ms: int, now_ms: int
    ) -> list[int]:
        """Scheduled ticks of the job in [since_ms, before_ms) that began and did not end, oldest
        first. Older ones whose owner went silent are closed as failed."""

    async def expired(self, jobs: Iterable[str], since_ms: int) -> list[Expired]:
        """The running runs, ticks from `since_ms`, whose lease ended, but for backfills."""

    async def clock_ms(self) -> int:
        """The ledger's own time, UTC epoch ms."""

    async def states(self, job: str, since_ms: int, until_ms: int) -> dict[int, State]:
        """The state and attempt of each run of the job with a tick in [since_ms, until_ms],
        whatever began it; at most 100,000, oldest first."""

    async def history(
        self, job: str, limit: int = 50, *, tick: int | None = None
    ) -> list[dict[str, Any]]:
        """A job's newest runs, or that of `tick`, newest first, `limit` and 1,000 at most. The
        fields are the columns of the table `job_runs`."""


class PastRuns(Protocol):
    """The runs of the past, as operators read them: rows as of `Ledger.history`, times in UTC epoch
    ms. Every method may raise StorageUnavailable."""

    @property
    def kept_in(self) -> KeptIn:
        """What is away when it gives no answer."""

    async def newest(self, jobs: Iterable[str], limit: int) -> dict[str, list[dict[str, Any]]]:
        """The newest runs of each job, newest first, at most `limit` of each."""

    async def page(self, job: str, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """At most `limit` runs of a job, newest first: those of ticks `before` this one."""

    async def spans(
        self, jobs: Sequence[str], since: int, until: int, span_ms: int
    ) -> dict[str, list[Span]]:
        """How each job's runs went in each span of [since, until); spans without a run, too."""
