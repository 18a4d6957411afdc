"""Alerts of a worker: looks, decides by the rules, says so in the log, and has it told once.

A round looks at what the worker knows of Redis, the database and its runs; only while something is
raised does it also ask the database. Nothing waits for it: it is a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection

from solocron.alerts.fleet import Fleet, View
from solocron.alerts.look import Look
from solocron.alerts.rules import FACTS, Change, Rules, resolved
from solocron.alerts.teller import Teller
from solocron.clock import Clock
from solocron.cron.journal import Entry
from solocron.cron.runner import Runner
from solocron.storage.alerts import Alert, AlertId

log = logging.getLogger("solocron.alerts")

_FACT_MS = 7 * 86_400_000
_SAID_ELSEWHERE = ("lock-unavailable", "clock-skew")  # where they are found


class Alerts:
    """The alerts. Run `run()` as a task; `after_s` is for how long something must be away,
    `differ_s` for how long schedules may differ, and `every_s` the pause between two looks."""

    def __init__(
        self, look: Look, fleet: Fleet, teller: Teller, runner: Runner, *, clock: Clock,
        after_s: float, differ_s: float, every_s: float,
    ) -> None:  # fmt: skip
        self._look = look
        self._fleet = fleet
        self._teller = teller
        self._clock = clock
        self._every_s = every_s
        self._hold_ms = int(max(3.0, 6 * every_s) * 1000)
        self._rules = Rules(after_s, differ_s)
        self._unclaimed: dict[AlertId, Alert] = {}
        self._alone: set[AlertId] = set()
        self._seen = 1  # alerts of the fleet, as far as known: look into the database at the start
        runner.journal.listen(self._note)
        runner.alarmed.append(self._note_lock)
        runner.redis_is_told = lambda: ("redis-down", "") in self._rules.raised

    def current(self) -> list[Alert]:
        """The alerts this worker has raised, oldest first."""
        return sorted(self._rules.raised.values(), key=lambda each: each.since_ms)

    async def fleet(self) -> list[Alert]:
        """The alerts of all workers, oldest first; of this one, while neither Redis nor database
        can be asked."""
        found = {alert.id: alert for alert in (await self.view()).raised}
        for each in self.current():
            found.setdefault(each.id, each)
        return sorted(found.values(), key=lambda each: each.since_ms)

    async def view(self) -> View:
        """The alerts of all workers as Redis and the database have them, and which of the two could
        be asked."""
        return await self._fleet.view()

    async def run(self) -> None:
        """Look now and then, and tell, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._teller.run())
            while True:
                try:
                    await self.round()
                except Exception:
                    log.exception("alerts were not looked after; the next round tries again")
                await asyncio.sleep(self._every_s * random.uniform(0.8, 1.2))

    async def round(self) -> None:
        """Look once, and see through what came of it."""
        seen = await self._look()
        at_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        self._take(self._rules.observe(at_s, now_ms, seen.holding, seen.unknown))
        for alert in list(self._unclaimed.values()):
            if alert.id in self._unclaimed:  # not resolved meanwhile
                await self._claim(alert)
        await self._hold()
        view = await self._fleet.view(of_database=bool(self._rules.raised or self._seen))
        self._seen = len(view.alerts)
        await self._end(view)

    async def close(self) -> None:
        """Close what was connected. Safe to call twice."""
        await self._fleet.close()

    def _note(self, entry: Entry) -> None:
        self._take(self._rules.note(entry))

    def _note_lock(self, job: str, failed: str | None) -> None:
        text = failed and f"the {job} cron failed to get its lock again and again: {failed}"
        at_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        self._take(self._rules.see(("lock-unavailable", job), text, at_s, now_ms))

    def _take(self, changes: Collection[Change]) -> None:
        """Say it in the log; what is raised is claimed in the next round."""
        for change in changes:
            alert = change.alert
            if change.what == "raised":
                self._unclaimed[alert.id] = alert
            else:
                self._unclaimed.pop(alert.id, None)
                self._alone.discard(alert.id)
            if alert.name in _SAID_ELSEWHERE:
                continue
            fields = {"alert": alert.name, "job": alert.job}
            if change.what == "raised":
                log.error("ALARM: %s", change.text, extra=fields)
            else:
                log.warning("RESOLVED: %s", change.text, extra=fields)

    async def _claim(self, alert: Alert) -> None:
        """Tell of a raised alert if no other worker does."""
        claim = await self._fleet.claim(alert, self._hold_ms_of(alert))
        self._seen += 1
        self._unclaimed.pop(alert.id, None)
        if claim == "alone" and alert.id in self._rules.raised:
            self._alone.add(alert.id)
        if claim != "theirs":
            self._teller.tell(Change("raised", alert, alert.text), self._clock.now_ms())

    async def _hold(self) -> None:
        """Say of the conditions that they go on. One that nobody knows any more, as after this
        process was frozen, is raised anew; one that was told alone is made known."""
        held = [id_ for id_ in self._rules.raised if id_[0] not in FACTS]
        gone = await self._fleet.hold(held, self._hold_ms) if held else set()
        for id_ in gone & self._rules.raised.keys():
            alert = self._rules.raised[id_]
            if id_ in self._alone:
                await self._fleet.claim(alert, self._hold_ms)
            else:
                await self._claim(alert)

    async def _end(self, view: View) -> None:
        """Tell of what is over if no other worker does; and take in what others found to be."""
        for alert, over, home in view.alerts:
            before_ms = self._rules.is_over(alert)
            known_over = over or before_ms is not None
            if known_over and await self._fleet.end(alert.id, home, before_ms=before_ms):
                self._teller.tell(resolved(alert), self._clock.now_ms())
        for id_ in [each for each in self._rules.raised if each[0] in FACTS]:
            if view.lacks(id_) and id_ not in self._unclaimed:
                self._take(self._rules.forget(id_))

    def _hold_ms_of(self, alert: Alert) -> int:
        return _FACT_MS if alert.name in FACTS else self._hold_ms
