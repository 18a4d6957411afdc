"""What this server did with each tick: an entry per tick and verdict, for whoever listens. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from solocron.cron.job import Job
from solocron.cron.outcome import BEGUN, Outcome, verdict_of
from solocron.ledger import kept_text

log = logging.getLogger("solocron.cron")

MAX_DETAIL = 300
_KEPT = 2_000


@dataclass(frozen=True)
class Entry:
    """What became of a tick (UTC epoch ms) of a job here.

    `verdict` is one of `outcome.VERDICTS`, `detail` says more: who holds the lock, or what went
    wrong. `attempt` is 0 for a tick that was not begun. `late_ms` is how long after the tick and
    the job's delay its body began, `duration_ms` how long it took, `at_ms` when this was written
    (UTC epoch ms).
    """

    job: str
    tick: int
    verdict: str
    detail: str = ""
    attempt: int = 0
    late_ms: int = 0
    duration_ms: int = 0
    at_ms: int = 0

    @property
    def begun(self) -> bool:
        """Whether the tick was run here, however it ended."""
        return self.verdict in BEGUN


Listener = Callable[[Entry], None]


def entry_of(job: Job, tick: int, outcome: Outcome, origin: str, at_ms: float) -> Entry:
    """The entry of a tick that was tried for the reason `origin`."""
    detail = outcome.detail
    if outcome.state in ("failed", "lost"):
        detail = outcome.reason or ""
    elif outcome.by_ledger:
        detail = f"{outcome.reason}: {detail}"
    begun = outcome.begun_ms is not None
    return Entry(
        job.name, tick, verdict_of(job, tick, outcome, origin), kept_text(detail, MAX_DETAIL),
        outcome.attempt if begun else 0, max(0, (outcome.begun_ms or tick) - tick - job.delay_ms),
        outcome.duration_ms, int(at_ms),
    )  # fmt: skip


class Journal:
    """Tells its listeners of each entry, and remembers the one that stands for each tick.

    A tick may be tried again: by a sweep while the database is away, say. That is told only if it
    comes to something else; and once a tick was begun here, no skip stands for it any more.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._last: dict[tuple[str, int], Entry] = {}
        self._standing: dict[tuple[str, int], Entry] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Have `listener` called with each entry from now on."""
        self._listeners.append(listener)

    def note(self, entry: Entry) -> None:
        """Take an entry in."""
        place = (entry.job, entry.tick)
        last, standing = self._last.get(place), self._standing.get(place)
        if last is not None and last.verdict == entry.verdict and not entry.begun:
            return
        _put(self._last, place, entry, self._kept)
        if standing is None or entry.begun or not standing.begun:
            _put(self._standing, place, entry, self._kept)
        for listener in self._listeners:
            try:
                listener(entry)
            except Exception:  # a listener's fault is none of the run's
                log.exception("an entry of %s tick %d was not taken", entry.job, entry.tick)

    def standing(self, job: str, tick: int) -> Entry | None:
        """The entry that stands for the tick; None if there is none, or it was long ago."""
        return self._standing.get((job, tick))


def _put(
    entries: dict[tuple[str, int], Entry], place: tuple[str, int], entry: Entry, most: int
) -> None:
    """Add it as the newest, and leave out the oldest of too many."""
    entries.pop(place, None)
    entries[place] = entry
    if len(entries) > most:
        del entries[next(iter(entries))]
