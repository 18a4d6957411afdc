"""The runs of the past, of a service without a database: read from their records in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from solocron.ledger import KeptIn, Span
from solocron.locks.run_records import MOST_KEPT, RunRecords


class PastRecords:
    """Reads the records; of each job there are `MOST_KEPT` at most."""

    kept_in: KeptIn = "redis"

    def __init__(self, records: RunRecords) -> None:
        self._records = records

    async def newest(self, jobs: Iterable[str], limit: int) -> dict[str, list[dict[str, Any]]]:
        """The newest runs of each job, newest first, at most `limit` of each."""
        names = list(jobs)
        found = await asyncio.gather(*(self._records.history(job, limit) for job in names))
        return dict(zip(names, found, strict=True))

    async def page(self, job: str, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """At most `limit` runs of a job, newest first: those of ticks `before` this one."""
        return await self._records.history(job, limit, before=before)

    async def spans(
        self, jobs: Sequence[str], since: int, until: int, span_ms: int
    ) -> dict[str, list[Span]]:
        """How each job's runs went in each span of [since, until); spans without a run, too."""
        asked = (self._records.rows(job, MOST_KEPT, before=until, since=since) for job in jobs)
        found = await asyncio.gather(*asked)
        starts = range(since, until, span_ms)
        return {
            job: [_span(rows, start, span_ms) for start in starts]
            for job, rows in zip(jobs, found, strict=True)
        }


def _span(rows: Iterable[Mapping[str, Any]], since: int, span_ms: int) -> Span:
    within = [
        row for row in rows
        if row["origin"] == "schedule" and since <= row["tick"] < since + span_ms
    ]  # fmt: skip
    late_ms = max((row["started_at"] - row["tick"] for row in within), default=0)
    return Span(since, Counter(row["state"] for row in within), max(0, late_ms))
