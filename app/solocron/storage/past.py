"""The runs of the past, as operators read them: the newest of each job, and how they went by the
hour. Times are UTC epoch ms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.ledger import KeptIn, Span
from solocron.storage.engine import Database
from solocron.storage.tables import job_runs

MOST_RUNS = 1000
_SHOWN = (
    "job", "tick", "attempt", "state", "owner", "origin", "fallback", "started_at", "finished_at",
    "duration_ms", "error", "result", "params", "asked_by", "progress",
)  # fmt: skip


class Past:
    """Reads the table `job_runs`. Every method may raise StorageUnavailable."""

    kept_in: KeptIn = "database"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self, jobs: Iterable[str], limit: int) -> dict[str, list[dict[str, Any]]]:
        """The newest runs of each job, newest first, at most `limit` of each."""
        async with self._database.connect() as connection:
            return {job: await _rows(connection, _runs(job, limit)) for job in jobs}

    async def page(self, job: str, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """At most `limit` runs of a job, newest first: those of ticks `before` this one."""
        query = _runs(job, limit)
        if before is not None:
            query = query.where(job_runs.c.tick < before)
        async with self._database.connect() as connection:
            return await _rows(connection, query)

    async def spans(
        self, jobs: Sequence[str], since: int, until: int, span_ms: int
    ) -> dict[str, list[Span]]:
        """How each job's runs went in each span of [since, until); spans without a run, too."""
        place = ((job_runs.c.tick - since) // span_ms).label("place")
        rows = (
            select(
                job_runs.c.job, job_runs.c.state, place,
                (job_runs.c.started_at - job_runs.c.tick).label("late_ms"),
            )
            .where(
                job_runs.c.job.in_(jobs), job_runs.c.origin == "schedule",
                job_runs.c.tick >= since, job_runs.c.tick < until,
            )
            .subquery()
        )  # fmt: skip
        groups = (rows.c.job, rows.c.place, rows.c.state)
        query = select(*groups, func.count(), func.max(rows.c.late_ms)).group_by(*groups)
        async with self._database.connect() as connection:
            found = (await connection.execute(query)).all()
        count = -((since - until) // span_ms)
        spans = {job: [Span(since + n * span_ms, {}, 0) for n in range(count)] for job in jobs}
        for job, number, state, runs, late_ms in found:
            span = spans[job][int(number)]
            late_ms = max(span.late_ms, int(late_ms))
            spans[job][int(number)] = Span(span.since, {**span.states, state: runs}, late_ms)
        return spans


def _runs(job: str, limit: int) -> Select[Any]:
    query = select(*(job_runs.c[name] for name in _SHOWN)).where(job_runs.c.job == job)
    return query.order_by(job_runs.c.tick.desc()).limit(min(limit, MOST_RUNS))


async def _rows(connection: AsyncConnection, query: Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in (await connection.execute(query)).mappings()]
