"""What operators see of the fleet: jobs, their runs, locks, workers, alerts, stores, deliveries.

Each part is asked for by itself and within 2 s: what Redis or the database does not answer is None
or empty, and named in `missing` with the reason. Times are UTC epoch ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from solocron.clock import Clock
from solocron.cron.board import Board, Presence
from solocron.cron.job import Job
from solocron.cron.values import value_of
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.ledger import KeptIn, PastRuns
from solocron.locks.manager import LockManager
from solocron.locks.results import Survey, token_tick
from solocron.notifications.channels import Channels
from solocron.storage.alerts import Alert
from solocron.stores.service import StoreService
from solocron.stores.tally import Tally, tally
from solocron.web.kept import Kept
from solocron.web.status import pause_of

MOST_LOCKS = 1000
SPAN_MS, SPANS = 3_600_000, 24
_WITHIN_S = 2.0
_KEPT_S = 15.0
_ALERTS_KEPT_S = _LOCKS_KEPT_S = 2.0

_T = TypeVar("_T")

Missing = dict[str, str]
_TEXTS: Mapping[KeptIn, str] = {
    "redis": "Redis does not answer: locks, pauses and workers are not known",
    "database": "the database does not answer: runs, stores, deliveries are not known",
}


class FleetView:
    """Reads it. `alerts` gives those of all workers that are raised now; a worker is silent
    `silent_ms` after its last sign."""

    def __init__(
        self, *, jobs: Mapping[str, Job], locks: LockManager, past: PastRuns, board: Board,
        channels: Channels | None, stores: StoreService | None, clock: Clock, silent_ms: int,
        alerts: Callable[[], Awaitable[Sequence[Alert]]],
    ) -> None:  # fmt: skip
        self._jobs = jobs
        self._locks = locks
        self._past = past
        self._board = board
        self._clock = clock
        self._silent_ms = silent_ms
        self.has_database = stores is not None
        # Grouped over whole tables, so not read anew for each who asks.
        self._stores = Kept[Tally | None](
            (lambda: tally(stores, clock.now_ms())) if stores else _nothing, _KEPT_S
        )
        self._deliveries = Kept[list[dict[str, Any]] | None](
            channels.status if channels else _nothing, _KEPT_S
        )
        self._alerts = Kept(alerts, _ALERTS_KEPT_S)
        self._spans = Kept(self._read_spans, _KEPT_S)
        self._held = Kept(self.locks, _LOCKS_KEPT_S)

    async def jobs(self, names: Sequence[str], runs: int) -> dict[str, Any]:
        """These jobs: schedule, lock, pause, and the newest `runs` runs of each."""
        missing: Missing = {}
        jobs = [self._jobs[name] for name in names]
        surveys, newest = await asyncio.gather(
            _answer(missing, "redis", self._survey(jobs)),
            _answer(missing, self._past.kept_in, self._past.newest(names, runs)),
        )
        now_ms = self._clock.now_ms()
        rows = [
            _job(job, surveys[number] if surveys is not None else None,
                 newest[job.name] if newest is not None else None, now_ms)
            for number, job in enumerate(jobs)
        ]  # fmt: skip
        return {"now": int(now_ms), "jobs": rows, "missing": missing}

    async def _survey(self, jobs: Sequence[Job]) -> list[Survey]:
        return list(await asyncio.gather(*(self._locks.inspect(job.lock_key) for job in jobs)))

    async def runs(self, name: str, limit: int, before: int | None) -> dict[str, Any]:
        """A page of a job's runs, newest first; `next` is the `before` of what follows. Raises
        StorageUnavailable: there is nothing else to show."""
        rows = await self._past.page(name, limit, before)
        following = rows[-1]["tick"] if len(rows) == limit else None
        return {"runs": [_run(row, self._jobs[name].delay_ms) for row in rows], "next": following}

    async def workers(self) -> dict[str, Any]:
        """The workers seen within a day; without Redis, this one."""
        missing: Missing = {}
        found = await _answer(missing, "redis", self._board.workers())
        if found is None:
            found = [] if (here := self._board.presence()) is None else [here]
        now_ms = self._clock.now_ms()
        return {"now": int(now_ms), "workers": [self._worker(each, now_ms) for each in found],
                "missing": missing}  # fmt: skip

    def _worker(self, presence: Presence, now_ms: float) -> dict[str, Any]:
        """`seen_ago_ms` is by Redis's clock, as far as both workers know theirs from it."""
        here_ms = self._clock.real_ms(now_ms) - self._locks.skew.ahead_ms
        there_ms = self._clock.real_ms(presence.seen_ms) - presence.skew_ms
        ago_ms = max(0, int(here_ms - there_ms))
        return {**asdict(presence), "seen_ago_ms": ago_ms, "alive": ago_ms <= self._silent_ms,
                "here": presence.worker == self._board.worker}  # fmt: skip

    async def locks(self, limit: int = MOST_LOCKS) -> dict[str, Any]:
        """The locks held now, at most `limit`: whose, for how long, and for which job and tick."""
        missing: Missing = {}
        found = await _answer(missing, "redis", self._locks.locks(limit))
        names = {job.lock_key: name for name, job in self._jobs.items()}
        rows = [
            {**each, "job": names.get(each["key"]), "tick": _tick(each["owner"])}
            for each in found or ()
        ]
        return {"now": int(self._clock.now_ms()), "locks": rows, "missing": missing}

    async def held(self) -> dict[str, Any]:
        """As `locks`, all of them; read every 2 s at most, which is when `now` is, for a page of
        everybody's."""
        return await self._held.get()

    def unlocked(self) -> None:
        """A lock was deleted: `held` has it no more."""
        self._held.forget()

    async def alerts(self) -> dict[str, Any]:
        """The alerts of all workers, oldest first; of this one when nobody else can be asked."""
        rows = [
            {"alert": each.name, "job": each.job, "detail": each.text, "severity": each.severity,
             "since": each.began_ms}
            for each in await self._alerts.get()
        ]  # fmt: skip
        return {"now": int(self._clock.now_ms()), "alerts": rows}

    async def summary(self) -> dict[str, Any]:
        """How many stores are open and due, what waits in each channel, and how the jobs' runs went
        in each hour of the last day; read every 15 s at most."""
        missing: Missing = {}
        stores, deliveries, spans = await asyncio.gather(
            _answer(missing, "database", self._stores.get()),
            _answer(missing, "database", self._deliveries.get()),
            _answer(missing, self._past.kept_in, self._spans.get()),
        )
        return {
            "now": int(self._clock.now_ms()),
            "stores": asdict(stores) if stores is not None else None,
            "deliveries": deliveries,
            "hours": spans,
            "missing": missing,
        }

    async def _read_spans(self) -> list[dict[str, Any]]:
        until = (int(self._clock.now_ms()) // SPAN_MS + 1) * SPAN_MS
        since = until - SPANS * SPAN_MS
        found = await self._past.spans(list(self._jobs), since, until, SPAN_MS)
        return [
            {"job": job, "since": span.since,
             "late_ms": max(0, span.late_ms - self._jobs[job].delay_ms),
             **{state: span.states.get(state, 0) for state in ("succeeded", "failed", "running")}}
            for job, spans in found.items() for span in spans if span.states
        ]  # fmt: skip


async def _answer(missing: Missing, keeper: KeptIn, reading: Awaitable[_T]) -> _T | None:
    """What it reads, within 2 s; None when what keeps it does not answer, which is then noted."""
    try:
        async with asyncio.timeout(_WITHIN_S):
            return await reading
    except (LockUnavailable, StorageUnavailable, TimeoutError):
        missing[keeper] = _TEXTS[keeper]
        return None


async def _nothing() -> None:
    """What a service without a database has of it."""


def _job(
    job: Job, survey: Survey | None, runs: Sequence[Mapping[str, Any]] | None, now_ms: float
) -> dict[str, Any]:
    return {
        "job": job.name, "schedule": job.calendar.expression, "timezone": job.calendar.zone,
        "lock_key": job.lock_key, "next_tick": job.calendar.next_after(now_ms),
        "delay_ms": job.delay_ms, "params": dict(job.params),
        "paused": survey.paused if survey else None, **pause_of(survey, now_ms),
        "owner": survey.owner or None if survey else None,
        "lock_ttl_ms": survey.ttl_ms if survey and survey.owner else None,
        "settled_tick": survey.settled if survey else None,
        "runs": [_run(row, job.delay_ms) for row in runs] if runs is not None else None,
    }  # fmt: skip


def _run(row: Mapping[str, Any], delay_ms: int) -> dict[str, Any]:
    """A row of the ledger, whose job begins `delay_ms` after its ticks; a run by hand has no tick
    to be late for."""
    late_ms = max(0, row["started_at"] - row["tick"] - delay_ms)
    values = {name: value_of(row[name]) for name in ("result", "params", "progress")}
    return {
        **row, "fallback": bool(row["fallback"]), **values,
        "late_ms": late_ms if row["origin"] == "schedule" else None,
    }  # fmt: skip


def _tick(owner: str) -> int | None:
    tick = token_tick(owner)
    return None if tick is None or tick < 0 else tick
