"""What is an alert, and when it is over: pure rules with hysteresis.

A *condition* holds here and now: it is raised once it has held for some time, and resolved once it
has not for some time. A *fact* comes from the journal and stands until a later run of the job,
wherever that is: a failed run until one succeeds, a missed tick until one is run. The only alert
that is decided elsewhere is `lock-unavailable`, counted where locks are asked for (`cron.alarm`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from solocron.cron.journal import Entry
from solocron.cron.outcome import SUCCEEDED
from solocron.storage.alerts import MAX_TEXT, Alert, AlertId


class Kind(NamedTuple):
    """How urgent an alert is, after how many times the waiting time it is raised, and after how
    many it is resolved; `None`: it is a fact. What is said when it is over."""

    severity: str
    raised_after: int | None
    resolved_after: int
    over: str


KINDS: Mapping[str, Kind] = {
    "lock-unavailable": Kind("critical", 0, 0, "the {job} cron gets its lock again"),
    "job-failed": Kind("critical", None, 0, "the {job} cron succeeded again"),
    "job-overran": Kind("warning", 0, 0, "the {job} cron does not overrun any more"),
    "tick-missed": Kind("critical", None, 0, "the {job} cron runs again"),
    "redis-down": Kind("critical", 1, 1, "Redis is there again"),
    "database-down": Kind("critical", 1, 1, "the database is there again"),
    "clock-skew": Kind("critical", 0, 1, "this server's clock is right again"),
    "schedules-differ": Kind("warning", 12, 1, "all servers have one schedule of {job} again"),
    "worker-silent": Kind("warning", 0, 0, "{job} is silent no more, or it was replaced"),
    "dead-letters": Kind("warning", 0, 0, "no dead letter is left"),
}
FACTS = frozenset(name for name, kind in KINDS.items() if kind.raised_after is None)


@dataclass(frozen=True)
class Change:
    """An alert that was raised, or resolved: then `text` says so."""

    what: Literal["raised", "resolved"]
    alert: Alert
    text: str


def resolved(alert: Alert) -> Change:
    """The change by which an alert is over."""
    over = KINDS[alert.name].over if alert.name in KINDS else "over: {job}"
    return Change("resolved", alert, over.format(job=alert.job))


@dataclass
class _Condition:
    """A condition that holds, or did a moment ago: since when it does, or does not (s), and when
    it began (UTC epoch ms)."""

    holds: bool
    since_s: float
    began_ms: int
    text: str


class Rules:
    """The alerts of one worker. `after_s` is the waiting time: for how long Redis or the database
    is away before that is an alert, and there before it is over. Schedules may differ for
    `differ_s`, if that is longer."""

    def __init__(self, after_s: float, differ_s: float = 0.0) -> None:
        self._after_s = after_s
        self._least_s = {"schedules-differ": differ_s}
        self._conditions: dict[AlertId, _Condition] = {}
        self._ended: dict[AlertId, int] = {}
        self.raised: dict[AlertId, Alert] = {}

    def note(self, entry: Entry) -> list[Change]:
        """Take in an entry of the journal; what changed by it."""
        changes: list[Change] = []
        if entry.verdict == "failed":
            text = f"the {entry.job} cron failed: {entry.detail}"
            changes += self._state("job-failed", entry, text)
        elif entry.verdict == "missed":
            text = f"the {entry.job} cron missed a tick: nobody ran it in the catch-up window"
            changes += self._state("tick-missed", entry, text)
        if entry.verdict in SUCCEEDED:
            changes += self._end(("job-failed", entry.job), entry.tick)
        if entry.begun:
            changes += self._end(("tick-missed", entry.job), entry.tick)
        return changes

    def observe(
        self, at_s: float, now_ms: float, holding: Mapping[AlertId, str],
        unknown: Collection[str] = (),
    ) -> list[Change]:  # fmt: skip
        """Take in the conditions that hold at `at_s` (monotonic, s), each with a text; of the names
        in `unknown` nothing could be found out. What changed by it."""
        changes: list[Change] = []
        for id_ in {**holding, **self._conditions}:
            if id_ in holding or id_[0] not in unknown:
                changes += self.see(id_, holding.get(id_), at_s, now_ms)
        return changes

    def see(self, id_: AlertId, text: str | None, at_s: float, now_ms: float) -> list[Change]:
        """Take in that one condition holds at `at_s` (monotonic, s), or, without a text, does not.
        What changed by it."""
        condition = self._conditions.get(id_)
        if text is not None and (condition is None or not condition.holds):
            begun = condition.began_ms if condition and id_ in self.raised else int(now_ms)
            condition = self._conditions[id_] = _Condition(True, at_s, begun, text)
        if condition is None:
            return []
        if text is not None:
            condition.text = text
        elif condition.holds:
            condition.holds, condition.since_s = False, at_s
        return self._judge(id_, condition, at_s - condition.since_s)

    def forget(self, id_: AlertId) -> list[Change]:
        """A fact that another worker found to be over."""
        alert = self.raised.pop(id_, None)
        return [resolved(alert)] if alert is not None else []

    def is_over(self, alert: Alert) -> int | None:
        """The tick by which this worker knows a fact to be over; None if it does not."""
        ended = self._ended.get(alert.id, -1)
        return ended if ended > alert.since_ms else None

    def _judge(self, id_: AlertId, condition: _Condition, for_s: float) -> list[Change]:
        kind, is_raised = KINDS[id_[0]], id_ in self.raised
        if condition.holds:
            after_s = max((kind.raised_after or 0) * self._after_s, self._least_s.get(id_[0], 0))
            if is_raised or for_s < after_s:
                return []
            return [self._raise(id_, condition.began_ms, condition.text)]
        if not is_raised:
            del self._conditions[id_]
            return []
        if for_s < kind.resolved_after * self._after_s:
            return []
        del self._conditions[id_]
        return self.forget(id_)

    def _state(self, name: str, entry: Entry, text: str) -> list[Change]:
        id_ = (name, entry.job)
        if id_ in self.raised:
            newer = replace(self.raised[id_], since_ms=max(self.raised[id_].since_ms, entry.tick))
            self.raised[id_] = newer
            return []
        if entry.tick <= self._ended.get(id_, -1):
            return []
        return [self._raise(id_, entry.tick, text)]

    def _end(self, id_: AlertId, tick: int) -> list[Change]:
        self._ended[id_] = max(tick, self._ended.get(id_, -1))
        alert = self.raised.get(id_)
        return self.forget(id_) if alert is not None and alert.since_ms < tick else []

    def _raise(self, id_: AlertId, since_ms: int, text: str) -> Change:
        alert = Alert(*id_, since_ms, text[:MAX_TEXT], KINDS[id_[0]].severity, since_ms)
        self.raised[id_] = alert
        return Change("raised", alert, alert.text)
