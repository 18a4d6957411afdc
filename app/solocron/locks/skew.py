"""Whether a tick's time has come by a clock other than this server's own.

A server whose clock is hours ahead would run ticks before their time, and what it settles, no
server would run until then. So a tick is open only once Redis's clock (or the database's, while
Redis is away) has come within `max_skew_ms` of it: a wrong clock does harm for that long at most.
A minute is more than machines drift apart between two corrections, and no more than the shortest
period of a five-field schedule. A clock that is behind only makes this server late.
"""

from __future__ import annotations

import logging

from solocron.clock import Clock

log = logging.getLogger("solocron.locks")


class SkewGuard:
    """Judges ticks by the time of others, and says once when this server's clock is off by more
    than `max_skew_ms`, and once when it is right again. `off`: whether it was when last compared;
    `ahead_ms`: by how much it was then at least ahead of the other, or, below 0, behind it.
    """

    def __init__(self, clock: Clock, max_skew_ms: float) -> None:
        self._clock = clock
        self._max_skew_ms = max_skew_ms
        self.off = False
        self.ahead_ms = 0.0

    def opens_ms(self, tick: float) -> int:
        """From when on, by another machine's clock (UTC epoch ms), `tick` may be run."""
        return int(self._clock.real_ms(tick) - self._max_skew_ms)

    def compare(self, sent_ms: float, theirs_ms: float, whose: str) -> None:
        """Take in that `whose` clock said `theirs_ms` (UTC epoch ms) at some moment between
        `sent_ms` (wall time here) and now: how long the answer took is no skew."""
        ahead_ms = self._clock.real_ms(sent_ms) - theirs_ms
        behind_ms = theirs_ms - self._clock.real_ms(self._clock.now_ms())
        off_ms = max(ahead_ms, behind_ms)
        self.ahead_ms = max(0.0, ahead_ms) or min(0.0, -behind_ms)
        if (off := off_ms > self._max_skew_ms) is self.off:
            return
        self.off = off
        if not off:
            log.warning("RESOLVED: this server's clock agrees with %s again", whose)
            return
        log.error(
            "ALARM: this server's clock is %.0f s %s %s: %s; set both by NTP (see timedatectl or "
            "chronyc tracking)", off_ms / 1000, "ahead of" if ahead_ms > 0 else "behind", whose,
            "it runs no tick whose time has not come by that" if ahead_ms > 0
            else "its ticks come late",
        )  # fmt: skip
