"""The run ledger: one run per (job, tick), and the fence around its effects.

Losing servers never come here; this is what is true when Redis is wrong or gone. A run's attempt
number is its fencing token: `fenced` refuses a transaction whose attempt is no longer current, so
a process that was paused and woken after a takeover cannot write. Leases are judged by the
database's own clock, so the servers' clocks do not matter.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import StaleAttempt
from solocron.storage.engine import Database, database_now
from solocron.storage.tables import job_runs

_MAX_ERROR = 2000
_GIVEN_BACK = 0  # a lease that did not end by silence


@dataclass(frozen=True)
class Verdict:
    """What the ledger says to a server that wants a tick.

    `run` with its attempt; `done` when the tick has finished; `held` while its lease lives.
    """

    kind: Literal["run", "done", "held"]
    attempt: int = 0
    owner: str = ""


@dataclass(frozen=True)
class RunKey:
    """One attempt of one run."""

    job: str
    tick: int
    attempt: int


class RunLedger:
    """The table `job_runs`. Every method may raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(
        self,
        job: str,
        tick: int,
        *,
        owner: str,
        now_ms: int,
        lease_ms: int,
        max_attempts: int,
        origin: str = "schedule",
        fallback: bool = False,
    ) -> Verdict:
        """Ask for a tick: one server gets `run`. A run whose lease ended is taken over with
        attempt + 1; when that was the last of `max_attempts` and its owner went silent, the run is
        closed as failed. (A run that was given back is no crash, however often it is.)"""
        insert = postgres_insert if self._database.dialect == "postgresql" else sqlite_insert
        fresh = insert(job_runs).values(
            job=job, tick=tick, attempt=1, state="running", owner=owner[:200], origin=origin,
            fallback=fallback, started_at=now_ms, lease_until=database_now() + lease_ms,
        ).on_conflict_do_nothing()  # fmt: skip
        async with self._database.begin() as connection:
            if (await connection.execute(fresh)).rowcount == 1:
                return Verdict("run", 1, owner)
            columns = (
                job_runs.c.attempt, job_runs.c.state, job_runs.c.owner, job_runs.c.lease_until,
            )  # fmt: skip
            expired = (job_runs.c.lease_until <= database_now()).label("expired")
            query = select(*columns, expired).where(_is(job, tick)).with_for_update()
            row = (await connection.execute(query)).one()
            if row.state != "running":
                return Verdict("done", row.attempt, row.owner)
            if not row.expired:
                return Verdict("held", row.attempt, row.owner)
            if row.attempt >= max_attempts and row.lease_until != _GIVEN_BACK:
                await self._close_crashed(connection, RunKey(job, tick, row.attempt), now_ms)
                return Verdict("done", row.attempt, row.owner)
            key = RunKey(job, tick, row.attempt)
            await self._next_attempt(connection, key, owner, lease_ms, fallback)
            return Verdict("run", row.attempt + 1, row.owner)

    async def _next_attempt(
        self, connection: AsyncConnection, key: RunKey, owner: str, lease_ms: int, fallback: bool
    ) -> bool:
        values = {
            "attempt": key.attempt + 1, "owner": owner[:200], "fallback": fallback,
            "lease_until": database_now() + lease_ms,
        }  # fmt: skip
        done = await connection.execute(update(job_runs).where(_current(key)).values(values))
        return bool(done.rowcount)

    async def _close_crashed(self, connection: AsyncConnection, key: RunKey, now_ms: int) -> None:
        error = f"gave up: {key.attempt} attempts ended without a word from their owner"
        values = {"state": "failed", "finished_at": now_ms, "error": error}
        await connection.execute(update(job_runs).where(_current(key)).values(values))

    async def retry(self, key: RunKey, *, owner: str, lease_ms: int, fallback: bool) -> bool:
        """Open the next attempt of a failed one; False when another server already did."""
        async with self._database.begin() as connection:
            return await self._next_attempt(connection, key, owner, lease_ms, fallback)

    async def heartbeat(self, key: RunKey, lease_ms: int) -> bool:
        """Extend the lease; False when the attempt is no longer current."""
        values = {"lease_until": database_now() + lease_ms}
        async with self._database.begin() as connection:
            done = await connection.execute(update(job_runs).where(_current(key)).values(values))
            return bool(done.rowcount)

    async def hand_over(self, key: RunKey, *, stopping: bool = False) -> None:
        """End the lease now, so that another server may take the run over at once. One that is
        `stopping` gives it back: a deploy of many servers uses up no attempts."""
        until = _GIVEN_BACK if stopping else database_now()
        async with self._database.begin() as connection:
            await connection.execute(
                update(job_runs).where(_current(key)).values(lease_until=until)
            )

    async def finish(
        self,
        key: RunKey,
        *,
        now_ms: int,
        duration_ms: int,
        result: Mapping[str, int] | None = None,
        error: str | None = None,
    ) -> bool:
        """Write how the run ended; False when the attempt is no longer current.

        May be asked again when the reply was lost: what this attempt wrote stays as it is.
        """
        state = "failed" if error is not None else "succeeded"
        values = {
            "state": state,
            "finished_at": now_ms,
            "duration_ms": duration_ms,
            "result": json.dumps(dict(result)) if result else None,
            "error": error[:_MAX_ERROR] if error is not None else None,
        }
        async with self._database.begin() as connection:
            ours = and_(
                _is(key.job, key.tick),
                job_runs.c.attempt == key.attempt,
                job_runs.c.state.in_(("running", state)),
            )
            done = await connection.execute(update(job_runs).where(ours).values(values))
            return bool(done.rowcount)

    @asynccontextmanager
    async def fenced(self, key: RunKey) -> AsyncIterator[AsyncConnection]:
        """A write transaction that holds the run's row; StaleAttempt unless it is current."""
        query = select(job_runs.c.attempt, job_runs.c.state).where(_is(key.job, key.tick))
        async with self._database.begin() as connection:
            row = (await connection.execute(query.with_for_update())).one_or_none()
            if row is None or row.attempt != key.attempt or row.state != "running":
                raise StaleAttempt(
                    f"{key.job} tick {key.tick}: attempt {key.attempt} is no longer current"
                )
            yield connection

    async def latest_ticks(self) -> dict[str, int]:
        """The newest scheduled tick the ledger knows of, per job."""
        query = (
            select(job_runs.c.job, func.max(job_runs.c.tick).label("tick"))
            .where(job_runs.c.origin == "schedule")
            .group_by(job_runs.c.job)
        )
        async with self._database.connect() as connection:
            return {row.job: row.tick for row in await connection.execute(query)}

    async def unfinished(
        self, job: str, *, since_ms: int, before_ms: int, now_ms: int
    ) -> list[int]:
        """Scheduled ticks of the job in [since_ms, before_ms) that began and did not end, oldest
        first. Older ones whose owner went silent are closed as failed: nobody may run them."""
        running = and_(
            job_runs.c.job == job,
            job_runs.c.state == "running",
            job_runs.c.origin == "schedule",
        )
        query = (
            select(job_runs.c.tick)
            .where(running, job_runs.c.tick < before_ms)
            .order_by(job_runs.c.tick)
            .limit(1000)
        )
        async with self._database.connect() as connection:
            ticks = list((await connection.execute(query)).scalars())
        if ticks and ticks[0] < since_ms:
            error = "gave up: its owner went silent and the catch-up window has passed"
            silent = and_(
                running, job_runs.c.tick < since_ms, job_runs.c.lease_until <= database_now()
            )
            values = {"state": "failed", "finished_at": now_ms, "error": error}
            async with self._database.begin() as connection:
                await connection.execute(update(job_runs).where(silent).values(values))
        return [tick for tick in ticks if tick >= since_ms]

    async def expired(self, since_ms: int) -> list[tuple[str, int]]:
        """(job, tick) of running runs, ticks from `since_ms`, whose lease ended: crashed owners."""
        query = (
            select(job_runs.c.job, job_runs.c.tick)
            .where(
                job_runs.c.state == "running",
                job_runs.c.origin == "schedule",
                job_runs.c.tick >= since_ms,
                job_runs.c.lease_until <= database_now(),
            )
            .limit(1000)
        )
        async with self._database.connect() as connection:
            return [(row.job, row.tick) for row in await connection.execute(query)]

    async def clock_ms(self) -> int:
        """The database's own time, UTC epoch ms."""
        async with self._database.connect() as connection:
            return int((await connection.execute(select(database_now()))).scalar_one())

    async def history(self, job: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The newest runs, newest first, at most `limit` (and never more than 1,000)."""
        query = select(job_runs).order_by(job_runs.c.tick.desc()).limit(min(limit, 1000))
        if job is not None:
            query = query.where(job_runs.c.job == job)
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [dict(row) for row in rows]


def _is(job: str, tick: int) -> ColumnElement[bool]:
    return and_(job_runs.c.job == job, job_runs.c.tick == tick)


def _current(key: RunKey) -> ColumnElement[bool]:
    return and_(
        _is(key.job, key.tick), job_runs.c.attempt == key.attempt, job_runs.c.state == "running"
    )
