"""aiocron triggers that stay true to the clock.

aiocron anchors wall and monotonic time once, at start: measured, after a 0.4 s clock step every
later tick is 0.4 s off. `Trigger` anchors anew each time it arms, and never sleeps longer than
`MAX_SLEEP_S`, so a stepped clock or a resumed machine is noticed. A timer that fires early (uvloop:
up to 0.15 ms) finds its tick still ahead and re-arms; after a stall only the newest tick fires.
"""

from __future__ import annotations

from collections.abc import Callable
from zoneinfo import ZoneInfo

import aiocron

from solocron.clock import Clock
from solocron.cron.ticks import Calendar

MAX_SLEEP_S = 30.0
_SET_BACK_MS = 60_000


class Trigger(aiocron.Cron):  # type: ignore[misc]  # aiocron ships no types
    """Calls `fire(tick)` on the event loop `delay_ms` after each tick (UTC epoch ms) of a calendar.

    Each tick fires once, also when the clock is set back by less than a minute. After a larger
    step back (a wrong clock was put right) the calendar counts from the new time. Ticks count from
    `since_ms` (UTC epoch ms; None: its start) on: to arm thousands of triggers takes a while.
    """

    def __init__(
        self, calendar: Calendar, clock: Clock, fire: Callable[[int], None], *, delay_ms: int = 0,
        since_ms: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(calendar.expression, fire, start=False, tz=ZoneInfo(calendar.zone))
        self._calendar = calendar
        self._clock = clock
        self._fire = fire
        self._delay_ms = delay_ms
        self._since_ms = since_ms
        self._target: int | None = None
        self._due: int | None = None
        self._seen_ms = 0.0

    def initialize(self) -> None:
        """Called by `start`. Nothing is anchored: `get_next` reads the clock each time."""
        self._target = self._due = None

    def get_next(self) -> float:
        """Loop time (s) of the next wake-up; notes the tick that is due now, if any.

        aiocron calls it to arm the next wake-up, and only then `call_func`.
        """
        now = self._clock.now_ms() - self._delay_ms
        if self._since_ms is not None:
            now, self._since_ms = self._since_ms - self._delay_ms, None
        if self._target is None or now < self._seen_ms - _SET_BACK_MS:
            self._target = self._calendar.next_after(now)
        elif now >= self._target:
            self._due = self._calendar.latest_at(now)
            self._target = self._calendar.next_after(now)
        self._seen_ms = now
        wait = self._clock.seconds_until(self._target + self._delay_ms)
        loop_time: float = self.loop.time()
        return loop_time + min(max(wait, 0.0), MAX_SLEEP_S)

    def call_func(self) -> None:
        """Fire the tick that is due; a wake-up without one only re-armed."""
        due, self._due = self._due, None
        if due is not None:
            self._fire(due)
