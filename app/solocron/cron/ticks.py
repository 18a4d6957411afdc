"""The calendar: which ticks a cron expression has. Pure; times are UTC epoch ms.

CronSim decides what an expression means, daylight saving included: a local time that does not
exist runs at the next one that does, a fixed local time that comes twice runs once. A tick's
identity is UTC, so the two 02:00s of a fall-back night cannot collide.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from solocron.errors import ConfigError

_DAY_MS = 24 * 3600 * 1000
_YEAR_MS = 366 * _DAY_MS
_MAX_EXPRESSION = 200
_WRITTEN = (
    "five fields, such as '0 0,6 * * *' (minute hour day month weekday), or six with seconds "
    "first, such as '*/5 * * * * *'"
)


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
            self._zone = ZoneInfo(zone)
        except (ValueError, OSError, LookupError):
            raise ConfigError(
                f"time zone {zone[:64]!r}: give an IANA name such as Europe/Berlin"
            ) from None
        if len(expression) > _MAX_EXPRESSION:
            raise ConfigError(
                f"cron expression of {len(expression)} characters: give at most {_MAX_EXPRESSION}"
            )
        self._known: tuple[int, int] | None = None  # a tick, and the one after it
        self.expression = " ".join(expression.split())
        self.zone = zone
        try:
            next(CronSim(self.expression, datetime(2026, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise ConfigError(f"cron expression {expression!r}: {error}; give {_WRITTEN}") from None
        except StopIteration:
            raise ConfigError(f"cron expression {expression!r} never comes due") from None

    def next_after(self, ms: float) -> int:
        """The first tick later than `ms`."""
        floor = int(ms // 1000)
        local = datetime.fromtimestamp(floor, self._zone)
        for moment in CronSim(self.expression, local):
            tick = round(moment.timestamp()) * 1000
            if tick > ms:
                return tick
        raise ConfigError(f"cron expression {self.expression!r} has no tick after {local}")

    def latest_at(self, ms: float) -> int | None:
        """The latest tick at or before `ms`; None if none within the 8 years before it.

        Bisects with `next_after` alone, so both directions agree by construction. Asked again, as
        each sweep does, it goes on from its last answer, which costs next to nothing.
        """
        if self._known is not None:
            tick, following = self._known
            if following <= ms:
                tick, following = following, self.next_after(following)
            if tick <= ms < following:
                self._known = (tick, following)
                return tick
        span = 60_000.0
        while self.next_after(ms - span) > ms:
            span *= 4
            if span > 8 * _YEAR_MS:
                return None
        low, high = ms - span, ms  # next_after(low) <= ms < next_after(high)
        while True:
            tick = self.next_after(low)
            following = self.next_after(tick)
            if following > ms:
                self._known = (tick, following)
                return tick
            middle = max((tick + high) / 2, float(tick))
            if self.next_after(middle) <= ms:
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
