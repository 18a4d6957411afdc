"""Time as a value that can be handed in: wall time in UTC epoch ms, monotonic time in s.

Schedules read the wall clock, leases and deadlines the monotonic one. `ScaledClock` runs the
wall clock faster (the demo shows a night in a minute) or askew (tests of clock skew); leases
stay in real time on either.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the service asks of time."""

    def now_ms(self) -> float:
        """Wall time, UTC epoch in ms (fractional)."""
        ...

    def monotonic(self) -> float:
        """Monotonic time in s, always real."""
        ...

    def seconds_until(self, wall_ms: float) -> float:
        """Real seconds until wall time `wall_ms`; negative when it is past."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> float:
        return time.time() * 1000

    def monotonic(self) -> float:
        return time.monotonic()

    def seconds_until(self, wall_ms: float) -> float:
        return (wall_ms - self.now_ms()) / 1000


class ScaledClock:
    """Wall time that started at `start_ms` when the machine's was `anchor_ms`, `rate` x faster.

    Processes given the same three values agree; `skew_ms` sets one of them ahead.
    """

    def __init__(
        self, *, anchor_ms: float, start_ms: float, rate: float = 1.0, skew_ms: float = 0.0
    ) -> None:
        self._anchor_ms = anchor_ms
        self._start_ms = start_ms + skew_ms
        self._rate = rate

    def now_ms(self) -> float:
        return self._start_ms + (time.time() * 1000 - self._anchor_ms) * self._rate

    def monotonic(self) -> float:
        return time.monotonic()

    def seconds_until(self, wall_ms: float) -> float:
        return (wall_ms - self.now_ms()) / 1000 / self._rate
