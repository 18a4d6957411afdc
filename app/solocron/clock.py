"""Time as a value that can be handed in: wall time in UTC epoch ms, monotonic time in s.

Schedules read the wall clock, leases and deadlines the monotonic one. `ScaledClock` runs the
wall clock faster (the demo shows a night in a minute) or askew (tests of clock skew); leases
stay in real time on either.

The monotonic clock goes on while the machine is suspended, where the platform has one that does
(Linux): a lease must be over when its machine wakes, because others have not waited. The event
loop's own timers stand still meanwhile, so they may fire late and are never trusted alone.
"""

from __future__ import annotations

import time
from typing import Protocol

_BOOT_TIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def _monotonic() -> float:
    return time.monotonic() if _BOOT_TIME is None else time.clock_gettime(_BOOT_TIME)


class Clock(Protocol):
    """What the service asks of time."""

    def now_ms(self) -> float:
        """Wall time, UTC epoch in ms (fractional)."""
        ...

    def monotonic(self) -> float:
        """Monotonic time in s, always real; a suspended machine's goes on."""
        ...

    def seconds_until(self, wall_ms: float) -> float:
        """Real seconds until wall time `wall_ms`; negative when it is past."""
        ...

    def real_ms(self, wall_ms: float) -> float:
        """When, in the world's time (UTC epoch ms), a clock of this kind that is right shows
        `wall_ms`: to compare with the time of another machine."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> float:
        return time.time() * 1000

    def monotonic(self) -> float:
        return _monotonic()

    def seconds_until(self, wall_ms: float) -> float:
        return (wall_ms - self.now_ms()) / 1000

    def real_ms(self, wall_ms: float) -> float:
        return wall_ms


class ScaledClock:
    """Wall time that started at `start_ms` when the machine's was `anchor_ms`, `rate` x faster.

    Processes given the same three values agree; `skew_ms` sets one of them ahead.
    """

    def __init__(
        self, *, anchor_ms: float, start_ms: float, rate: float = 1.0, skew_ms: float = 0.0
    ) -> None:
        self._anchor_ms = anchor_ms
        self._start_ms = start_ms
        self._skew_ms = skew_ms
        self._rate = rate

    def now_ms(self) -> float:
        passed = (time.time() * 1000 - self._anchor_ms) * self._rate
        return self._start_ms + self._skew_ms + passed

    def monotonic(self) -> float:
        return _monotonic()

    def seconds_until(self, wall_ms: float) -> float:
        return (wall_ms - self.now_ms()) / 1000 / self._rate

    def real_ms(self, wall_ms: float) -> float:
        return self._anchor_ms + (wall_ms - self._start_ms) / self._rate
