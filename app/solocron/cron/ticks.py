"""The calendar: which ticks a cron expression has. Pure; times are UTC epoch ms.

CronSim decides what an expression means, daylight saving included: a local time that does not
exist runs at the next one that does, a fixed local time that comes twice runs once. A tick's
identity is UTC, so the two 02:00s of a fall-back night cannot collide.
"""

from __future__ import annotations

from bisect import bisect_right
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from solocron.errors import ConfigError

_DAY_MS = 24 * 3600 * 1000
_YEAR_MS = 366 * _DAY_MS
_MAX_EXPRESSION = 200
_MOST_PARSED = 256
_KEPT = 4  # ticks: a job that is due each second settles one while the next comes
_WRITTEN = (
    "five fields, such as '0 0,6 * * *' (minute hour day month weekday), or six with seconds "
    "first, such as '*/5 * * * * *'"
)


@lru_cache(_MOST_PARSED)
def _parsed(expression: str, zone: tzinfo) -> CronSim:
    """What the expression means, for any time of the zone; to be copied. To read it takes longer
    than to find a tick, and what was read takes 14 KB: jobs with the same one share it. Raises
    CronSimError, and StopIteration if it never comes due."""
    next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    return CronSim(expression, datetime(2026, 1, 1, tzinfo=zone))


@dataclass(frozen=True)
class Gap:
    """The local times from `start` up to `end` do not exist: at `at_ms` (UTC epoch ms) the clocks
    are put on. `tick` comes then because its own time is among them; None if there is no such."""

    at_ms: int
    start: datetime
    end: datetime
    tick: int | None


class Calendar:
    """The ticks of `expression` (5 fields, or 6 with seconds first) in an IANA `zone`.

    Raises ConfigError naming what is wrong with either.
    """

    def __init__(self, expression: str, zone: str = "UTC") -> None:
        if not isinstance(expression, str):
            raise ConfigError(f"schedule {str(expression)[:40]!r}: give {_WRITTEN}")
        try:
            # In the library's own UTC a search need not think of clocks that are put on.
            self._zone: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)
        except (ValueError, OSError, LookupError):
            raise ConfigError(
                f"time zone {zone[:64]!r}: give an IANA name such as Europe/Berlin"
            ) from None
        if len(expression) > _MAX_EXPRESSION:
            raise ConfigError(
                f"cron expression of {len(expression)} characters: give at most {_MAX_EXPRESSION}"
            )
        # All ticks after the moment `_since` up to the newest of them.
        self._ticks: list[int] = []
        self._since = 0.0
        self.expression = " ".join(expression.split())
        self.zone = zone
        try:
            _parsed(self.expression, self._zone)
        except CronSimError as error:
            raise ConfigError(f"cron expression {expression!r}: {error}; give {_WRITTEN}") from None
        except StopIteration:
            raise ConfigError(f"cron expression {expression!r} never comes due") from None

    def next_after(self, ms: float) -> int:
        """The first tick later than `ms`.

        The newest answers are kept, for the same is asked again and again: by the trigger, by what
        is said of a run, and by each sweep.
        """
        if self._ticks and self._since <= ms:
            if ms >= self._ticks[-1]:
                self._ticks.append(self._search(self._ticks[-1]))
                if len(self._ticks) > _KEPT:
                    self._since = self._ticks.pop(0)
            if ms < self._ticks[-1]:
                return self._ticks[bisect_right(self._ticks, ms)]
        tick = self._search(ms)
        if self._since <= ms or not self._ticks:
            self._ticks, self._since = [tick], ms
        elif tick == self._ticks[0]:
            self._since = ms
        return tick

    def _search(self, ms: float) -> int:
        local = datetime.fromtimestamp(int(ms // 1000), self._zone)
        moments = copy(_parsed(self.expression, self._zone))
        moments.dt = local.replace(tzinfo=None) if moments.fixup_tz else local
        for moment in moments:
            tick = round(moment.timestamp()) * 1000
            if tick > ms:
                return tick
        raise ConfigError(f"cron expression {self.expression!r} has no tick after {local}")

    def latest_at(self, ms: float) -> int | None:
        """The latest tick at or before `ms`; None if none within the 8 years before it.

        Bisects with the forward search alone, so both directions agree by construction.
        """
        self.next_after(ms)
        if before := bisect_right(self._ticks, ms):
            return self._ticks[before - 1]
        span = 60_000.0
        while self._search(ms - span) > ms:
            span *= 4
            if span > 8 * _YEAR_MS:
                return None
        low, high = ms - span, ms  # the tick after `low` is at most `ms`, that after `high` is not
        while True:
            tick = self._search(low)
            following = self._search(tick)
            if following > ms:
                self._ticks, self._since = [tick, following], tick - 1
                return tick
            middle = max((tick + high) / 2, float(tick))
            if self._search(middle) <= ms:
                low = middle
            else:
                low, high = tick, middle

    def between(self, after: float, until: float, limit: int) -> list[int]:
        """Ticks in (after, until], oldest first, at most the first `limit` of them."""
        ticks: list[int] = []
        tick = self.next_after(after)
        while tick <= until and len(ticks) < limit:
            ticks.append(tick)
            tick = self.next_after(tick)
        return ticks

    # -- local time ------------------------------------------------------------------------

    def local(self, ms: float) -> datetime:
        """The time `ms` (UTC epoch ms) in the calendar's zone."""
        return datetime.fromtimestamp(ms / 1000, self._zone)

    def instant(self, naive: datetime) -> tuple[int, bool]:
        """When the local time `naive` is (UTC epoch ms; the first of two), and whether it exists;
        one that does not is as much after the clocks' change as it would be without it."""
        local = naive.replace(tzinfo=self._zone)
        moment = local.astimezone(UTC)
        exists = moment.astimezone(self._zone).replace(tzinfo=None) == naive.replace(fold=0)
        return round(moment.timestamp() * 1000), exists

    def gaps(self, since_ms: float, until_ms: float) -> list[Gap]:
        """The times between `since_ms` and `until_ms` that the zone's clocks are put on."""
        found, low = [], since_ms
        while low < until_ms:
            high = min(low + _DAY_MS, until_ms)
            if self._offset(high) > self._offset(low):
                found.append(self._gap(low, high))
            low = high
        return found

    def _offset(self, ms: float) -> timedelta:
        return self.local(ms).utcoffset() or timedelta()

    def _gap(self, low: float, high: float) -> Gap:
        before, after = self._offset(low), self._offset(high)
        while high - low > 500:
            middle = (low + high) / 2
            low, high = (low, middle) if self._offset(middle) == after else (middle, high)
        at_ms = round(high / 1000) * 1000
        utc = datetime.fromtimestamp(at_ms / 1000, UTC).replace(tzinfo=None)
        start, end = utc + before, utc + after
        return Gap(at_ms, start, end, at_ms if self._falls_into(start, end) else None)

    def _falls_into(self, start: datetime, end: datetime) -> bool:
        """Whether a tick of fixed local times falls into [start, end). One that comes again and
        again within such a time is none: it goes on through it."""
        first, last = (round(each.replace(tzinfo=UTC).timestamp() * 1000) for each in (start, end))
        plain = Calendar(self.expression)
        tick = plain.next_after(first - 1)
        return tick < last and plain.next_after(tick) - tick > last - first
