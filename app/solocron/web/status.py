"""What an operator asks first: is Redis there, is the database, and how is each job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solocron.cron.job import Job
from solocron.errors import LockUnavailable
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger


async def overview(
    jobs: Sequence[Job], *, locks: LockManager, ledger: RunLedger, database: Database, now_ms: float
) -> dict[str, Any]:
    """Redis, database, and each job with its lock and last run (times UTC epoch ms)."""
    try:
        surveys = await locks.survey([(job.lock_key, job.fingerprint) for job in jobs])
    except LockUnavailable:
        surveys = []
    is_ready, rows = await database.is_ready(), []
    for number, job in enumerate(jobs):
        last = (await ledger.history(job.name, 1))[:1] if is_ready else []
        run = last[0] if last else {}
        survey = surveys[number] if surveys else None
        rows.append({
            "job": job.name, "next_tick": job.calendar.next_after(now_ms),
            "owner": survey.owner if survey else None,
            "paused": survey.paused if survey else None,
            "last_tick": run.get("tick"), "state": run.get("state"),
            "attempt": run.get("attempt"), "duration_ms": run.get("duration_ms"),
            "error": run.get("error"),
        })  # fmt: skip
    return {
        "redis": "up" if surveys or not jobs else "down",
        "database": "up" if is_ready else "down", "jobs": rows,
    }  # fmt: skip
