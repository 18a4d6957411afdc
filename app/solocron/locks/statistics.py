"""How often each lock was got, and for how long: this process's own counts since its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from solocron.locks.results import GRANTED

_MAX_KEYS = 1000
OTHERS = "(others)"


@dataclass
class LockCounts:
    """What became of the attempts at one lock. `hold_ms` is the time held, in all, in ms."""

    acquired: int = 0
    held: int = 0
    done: int = 0
    paused: int = 0
    unavailable: int = 0
    renewals: int = 0
    lost: int = 0
    hold_ms: float = 0.0

    @property
    def success_rate(self) -> float | None:
        """Acquired, of the attempts that could have been: not of ticks that were settled or
        paused. None before the first."""
        attempts = self.acquired + self.held + self.unavailable
        return self.acquired / attempts if attempts else None


class LockStatistics:
    """Counts by lock key; beyond 1,000 keys the rest share one row. `on_release` is told the key of
    each lock that is let go, and for how many s it was held."""

    def __init__(self) -> None:
        self._counts: dict[str, LockCounts] = {}
        self.on_release: Callable[[str, float], None] | None = None

    def of(self, key: str) -> LockCounts:
        """The counts of a lock, to add to."""
        if key not in self._counts and len(self._counts) >= _MAX_KEYS:
            key = OTHERS
        return self._counts.setdefault(key, LockCounts())

    def claimed(self, key: str, answer: bytes) -> None:
        """Count the first word of the answer to an attempt."""
        counts = self.of(key)
        if answer == GRANTED:
            counts.acquired += 1
        elif answer == b"held":
            counts.held += 1
        elif answer == b"done":
            counts.done += 1
        elif answer == b"paused":
            counts.paused += 1

    def released(self, key: str, held_s: float, *, lost: bool) -> None:
        """Count a lock that was held and is let go, or was `lost`."""
        counts = self.of(key)
        counts.hold_ms += held_s * 1000
        counts.lost += lost
        if self.on_release is not None:
            self.on_release(key, held_s)

    def snapshot(self) -> Mapping[str, LockCounts]:
        """A copy of all counts."""
        return {key: replace(counts) for key, counts in self._counts.items()}
