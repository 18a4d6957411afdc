"""What an operator asks first: is Redis there, is the database, and how is each job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solocron.cron.job import Job
from solocron.cron.values import value_of
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.ledger import Ledger
from solocron.locks.manager import LockManager
from solocron.locks.results import Survey
from solocron.notifications.channels import Channels
from solocron.storage.engine import Database


async def overview(
    own: Sequence[Job], others: Sequence[Job], *, servers_up: int | None,
    locks: LockManager, ledger: Ledger, database: Database | None,
    channels: Channels | None, now_ms: float,
) -> dict[str, Any]:  # fmt: skip
    """Redis, database, their problems, each job's lock and last run (times UTC epoch ms), and
    what waits in each channel. `others` are jobs whose code is not here; `servers_up` is None where
    Redis does not tell."""
    jobs = [*own, *others]
    surveys: list[Survey] = []
    problems: dict[str, str] = {}
    try:
        if jobs:
            surveys = await locks.survey([job.lock_key for job in jobs])
        else:
            await locks.link.call("PING")
    except LockUnavailable as error:
        problems["redis"] = str(error)
    if database is not None:
        try:
            await database.check()
        except StorageUnavailable as error:
            problems["database"] = str(error)
    rows = []
    for number, job in enumerate(jobs):
        last = [] if ledger.kept_in in problems else await ledger.history(job.name, 1)
        run = last[0] if last else {}
        survey = surveys[number] if surveys else None
        rows.append({
            "job": job.name, "here": number < len(own),
            "next_tick": job.calendar.next_after(now_ms),
            "owner": survey.owner if survey else None,
            "paused": survey.paused if survey else None, **pause_of(survey, now_ms),
            "last_tick": run.get("tick"), "state": run.get("state"),
            "attempt": run.get("attempt"), "duration_ms": run.get("duration_ms"),
            "error": run.get("error"), "progress": value_of(run.get("progress")),
        })  # fmt: skip
    up = {each: "down" if each in problems else "up" for each in ("redis", "database")}
    if database is None:
        up["database"] = "none"
    known = channels is not None and "database" not in problems
    deliveries = await channels.status() if channels is not None and known else []
    return {
        **up,
        "servers_up": servers_up,
        "problems": list(problems.values()),
        "jobs": rows,
        "deliveries": deliveries,
    }


def pause_of(survey: Survey | None, now_ms: float) -> dict[str, Any]:
    """Until when a job is paused (UTC epoch ms), and by whom; None where it is not."""
    pause = survey.pause if survey else None
    if pause is None:
        return {"paused_until": None, "paused_by": None}
    return {"paused_until": pause.until_ms(now_ms), "paused_by": pause.by}
