"""Breaks in the service, made in a campaign's workers only: each must turn a campaign red."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.ledger import RunKey, Verdict
from solocron.storage.engine import database_now
from solocron.storage.runs import RunLedger
from solocron.storage.tables import job_runs

NO_FENCE, NO_LEDGER_KEY, NO_RESUME = "no-fence", "no-ledger-key", "no-resume"

# The faults that provoke each, so that a short campaign meets it again and again.
PROVOKED_BY = {
    NO_FENCE: ("zombie",),
    NO_LEDGER_KEY: ("redis-lose-data", "flushall"),
    NO_RESUME: ("client-cut",),
}


def apply(mutation: str) -> None:
    """Break this process's service. (`no-resume` is a matter of the clients.)"""
    if mutation == NO_FENCE:
        RunLedger.fenced = _unfenced  # type: ignore[method-assign]  # the break itself
    elif mutation == NO_LEDGER_KEY:
        RunLedger.begin = _begin_always  # type: ignore[method-assign]


@asynccontextmanager
async def _unfenced(self: RunLedger, key: RunKey) -> AsyncIterator[AsyncConnection]:
    """A transaction that asks nobody whether the attempt is current."""
    async with self._database.begin() as connection:
        yield connection


async def _begin_always(
    self: RunLedger, job: str, tick: int, *, owner: str, now_ms: int, lease_ms: int, **_: Any
) -> Verdict:
    """Whoever asks for a tick may run it, as its first attempt."""
    values = {"attempt": 1, "state": "running", "owner": owner,
              "lease_until": database_now() + lease_ms}  # fmt: skip
    fresh = insert(job_runs).values(
        job=job, tick=tick, origin="schedule", started_at=now_ms, **values
    )
    async with self._database.begin() as connection:
        if (await connection.execute(fresh.on_conflict_do_nothing())).rowcount == 0:
            same = (job_runs.c.job == job) & (job_runs.c.tick == tick)
            await connection.execute(update(job_runs).where(same).values(values))
    return Verdict("run", 1, owner)
