"""The run ledger: one run per (job, tick), and the fence around its effects.

Losing servers never come here; this is what is true when Redis is wrong or gone. A run's attempt
number is its fencing token: `fenced` refuses a transaction whose attempt is no longer current, so
a process that was paused and woken after a takeover cannot write. Leases are judged by the
database's own clock, so the servers' clocks do not matter.

A commit whose reply was lost is unclear until the ledger is read. So each transaction that begins
an attempt or writes effects leaves its `stamp` in the run's row: it was committed if and only if
the stamp is there. To read it is to wait for the row's lock, which a transaction that is still
under way holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, and_, func, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import StaleAttempt, StorageUnavailable
from solocron.ledger import Expired, KeptIn, RunKey, State, Verdict, kept_text
from solocron.storage.engine import POOL_SIZE, POOL_TIMEOUT_S, Database, database_now
from solocron.storage.patience import held, patiently, until_answered
from solocron.storage.run_groups import (
    RUNNING,
    WITHIN_S,
    Ending,
    Opening,
    RunGroups,
    ending,
    opening,
)
from solocron.storage.tables import job_runs

_MAX_ERROR = 2000
_MAX_BY = 200
_MOST_STATES = 100_000
_REOPENED = {"state": "running", "finished_at": None, "duration_ms": None, "error": None}
_GIVEN_BACK = 0  # a lease that did not end by silence
_GIVEN_S = 2.0
_RESERVE = 2  # connections that bodies leave to the ledger: a heartbeat may not wait for them


class RunLedger:
    """The table `job_runs`. Every method may raise StorageUnavailable.

    What is safe to do twice is tried again, through a lost reply, a deadlock or a serialization
    failure: for a few seconds to begin a run or hand it over, and until there is an answer where
    giving up would make another server do again what is done.
    """

    kept_in: KeptIn = "database"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._openings: RunGroups[Opening] = RunGroups(database, opening(database.dialect))
        self._endings: RunGroups[Ending] = RunGroups(database, ending(database.dialect))
        self._bodies = asyncio.Semaphore(POOL_SIZE - _RESERVE)

    @property
    def is_lost(self) -> bool:
        """Whether the database is gone (its log says so)."""
        return self._database.is_lost

    async def begin_next(
        self, job: str, tick: int, *, owner: str, now_ms: int, lease_ms: int, fallback: bool = False
    ) -> bool:
        """Begin a scheduled tick, unless somebody did, or an earlier one of the job began and did
        not end: `begin` is for these. Cancelled, it gives back what it began."""
        row = Opening(job, tick, owner[:200], fallback, now_ms, _new_stamp(), lease_ms)
        opening = asyncio.create_task(self._open(row))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(StorageUnavailable, TimeoutError):
                async with asyncio.timeout(_GIVEN_S):
                    if await opening:
                        await self.hand_over(RunKey(job, tick, 1), stopping=True)
            raise

    async def _open(self, row: Opening) -> bool:
        try:
            return await self._openings.write(row) or await self._is_open(row)
        except StorageUnavailable:
            return await patiently(partial(self._open_alone, row))

    async def _open_alone(self, row: Opening) -> bool:
        return bool(await self._openings.write_all([row])) or await self._is_open(row)

    async def _is_open(self, row: Opening) -> bool:
        """Whether it was written before, by a statement whose answer was lost."""
        query = select(job_runs.c.stamp).where(_is(row.job, row.tick))
        async with self._database.connect(WITHIN_S) as connection:
            return (await connection.execute(query)).scalar() == row.stamp

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
        params: str | None = None,
        asked_by: str = "",
        fresh: bool = False,
        again: int = 0,
    ) -> Verdict:
        """Ask for a tick: one server gets `run`. A run whose lease ended is taken over with
        attempt + 1; when that was the last of `max_attempts` and its owner went silent, the run is
        closed as failed. (A run that was given back is no crash, however often it is.)

        `params` (JSON) and `asked_by` are kept with a run by hand. `fresh`: only a run that nobody
        began will do. `again`: a run that failed with this attempt is opened anew, as the next."""
        stamp = _new_stamp()
        insert = postgres_insert if self._database.dialect == "postgresql" else sqlite_insert
        insertion = insert(job_runs).values(
            job=job, tick=tick, attempt=1, state="running", owner=owner[:200], origin=origin,
            fallback=fallback, started_at=now_ms, lease_until=database_now() + lease_ms,
            stamp=stamp, params=params, asked_by=kept_text(asked_by, _MAX_BY) or None,
        ).on_conflict_do_nothing()  # fmt: skip

        async def ask() -> Verdict:
            async with self._database.begin(WITHIN_S) as connection:
                if (await connection.execute(insertion)).rowcount == 1:
                    return Verdict("run", 1, owner, params)
                row = await self._row(connection, job, tick)
                if (found := _judge(row, stamp, fresh=fresh, again=again)) is not None:
                    return found
                key = RunKey(job, tick, row.attempt)
                crashed = row.attempt >= max_attempts and row.lease_until != _GIVEN_BACK
                if crashed and not again:
                    await self._close_crashed(connection, key, now_ms)
                    return Verdict("done", row.attempt, row.owner)
                values = _next(key, owner, lease_ms, fallback, stamp)
                if row.state == "failed":
                    values |= {**_REOPENED, "origin": origin, "started_at": now_ms}
                same = and_(_is(job, tick), job_runs.c.attempt == row.attempt)
                await connection.execute(update(job_runs).where(same).values(values))
                return Verdict("run", row.attempt + 1, row.owner, row.params)

        return await patiently(ask)

    async def _row(self, connection: AsyncConnection, job: str, tick: int) -> Row[Any]:
        """What `begin` judges of a run, whose row is locked by this."""
        columns = (
            job_runs.c.attempt, job_runs.c.state, job_runs.c.owner, job_runs.c.stamp,
            job_runs.c.lease_until, job_runs.c.params,
        )  # fmt: skip
        expired = (job_runs.c.lease_until <= database_now()).label("expired")
        query = select(*columns, expired).where(_is(job, tick)).with_for_update()
        return (await connection.execute(query)).one()

    async def _close_crashed(self, connection: AsyncConnection, key: RunKey, now_ms: int) -> None:
        error = f"gave up: {key.attempt} attempts ended without a word from their owner"
        values = {"state": "failed", "finished_at": now_ms, "error": error}
        await connection.execute(update(job_runs).where(_current(key)).values(values))

    async def retry(self, key: RunKey, *, owner: str, lease_ms: int, fallback: bool) -> bool:
        """Open the next attempt of a failed one; False when another server already did."""
        stamp = _new_stamp()
        opening = partial(self._update, key, _next(key, owner, lease_ms, fallback, stamp))
        if await until_answered(opening, str(key)):
            return True
        return (await until_answered(partial(self._last, key), str(key)))[1] == stamp

    async def _update(self, key: RunKey, values: Mapping[str, Any]) -> bool:
        """Change the run's row; False when the attempt is no longer current."""
        async with self._database.begin(WITHIN_S) as connection:
            done = await connection.execute(update(job_runs).where(_current(key)).values(values))
            return bool(done.rowcount)

    async def _last(self, key: RunKey) -> tuple[int, str | None]:
        """The run's attempt, and the stamp of its last committed transaction."""
        columns = select(job_runs.c.attempt, job_runs.c.stamp)
        query = columns.where(_is(key.job, key.tick)).with_for_update()
        async with self._database.begin(WITHIN_S) as connection:
            row = (await connection.execute(query)).one()
            return row.attempt, row.stamp

    async def heartbeat(self, key: RunKey, lease_ms: int, *, progress: str | None = None) -> bool:
        """Extend the lease, and note the run's progress (JSON), if there is news of it; False when
        the attempt is no longer current. Not tried again: the next one is due soon."""
        values: dict[str, Any] = {"lease_until": database_now() + lease_ms}
        if progress is not None:
            values["progress"] = progress
        return await self._update(key, values)

    async def hand_over(self, key: RunKey, *, stopping: bool = False) -> None:
        """End the lease now, so that another server may take the run over at once. One that is
        `stopping` gives it back: a deploy of many servers uses up no attempts."""
        until = _GIVEN_BACK if stopping else database_now()
        await patiently(partial(self._update, key, {"lease_until": until}))

    async def finish(
        self,
        key: RunKey,
        *,
        now_ms: int,
        duration_ms: int,
        result: str | None = None,
        error: str | None = None,
        progress: str | None = None,
    ) -> bool:
        """Write how the run ended, however long that takes, with its result and its last progress
        (JSON); False when the attempt is no longer current. May be asked again: what this attempt
        wrote stays as it is."""
        state = "failed" if error is not None else "succeeded"
        error = kept_text(error, _MAX_ERROR) if error is not None else None
        row = Ending(
            key.job, key.tick, key.attempt, state, now_ms, duration_ms, result, error, progress
        )
        try:
            return await self._endings.write(row)
        except StorageUnavailable:
            alone = partial(self._endings.write_all, [row])
            return bool(await until_answered(alone, str(key)))

    def room(self) -> AbstractAsyncContextManager[None]:
        """A place among the transactions of bodies, which are fewer than the connections."""
        return held(
            self._bodies, POOL_TIMEOUT_S,
            f"jobs on this server have {POOL_SIZE - _RESERVE} transactions open for "
            f"{POOL_TIMEOUT_S} s: make them shorter",
        )  # fmt: skip

    @asynccontextmanager
    async def fenced(self, key: RunKey) -> AsyncIterator[AsyncConnection]:
        """A write transaction that holds the run's row; StaleAttempt unless it is current.

        A run has one at a time. When its commit's reply is lost it waits until the ledger can be
        read, however long: then it returns, or raises StorageUnavailable, as was committed or not.
        """
        stamp, complete = _new_stamp(), False
        try:
            async with self._database.begin(None) as connection:
                await self._fence(connection, key, stamp)
                yield connection
                complete = True
        except StorageUnavailable:
            if not complete or not await self._was_committed(key, stamp):
                raise

    async def _fence(self, connection: AsyncConnection, key: RunKey, stamp: str) -> None:
        fence = update(job_runs).where(_current(key)).values(stamp=stamp)
        try:
            async with asyncio.timeout(WITHIN_S):
                found = await connection.execute(fence)
        except TimeoutError:
            raise StorageUnavailable(f"no answer within {WITHIN_S:g} s") from None
        if found.rowcount != 1:
            raise _stale(key)

    async def answers(self) -> None:
        """Raise StorageUnavailable unless the database answers."""
        async with self._database.connect(WITHIN_S):
            pass

    async def _was_committed(self, key: RunKey, stamp: str) -> bool:
        """Raises StaleAttempt after a takeover, whose own stamp hides the answer."""
        attempt, last = await until_answered(partial(self._last, key), str(key))
        if attempt != key.attempt:
            raise _stale(key)
        return last == stamp

    async def latest_ticks(self, jobs: Iterable[str]) -> dict[str, int]:
        """The newest scheduled tick the ledger knows of, per job."""
        query = (
            select(job_runs.c.job, func.max(job_runs.c.tick).label("tick"))
            .where(job_runs.c.origin == "schedule", job_runs.c.job.in_(list(jobs)))
            .group_by(job_runs.c.job)
        )
        async with self._database.connect(WITHIN_S) as connection:
            return {row.job: row.tick for row in await connection.execute(query)}

    async def unfinished(
        self, job: str, *, since_ms: int, before_ms: int, now_ms: int
    ) -> list[int]:
        """Scheduled ticks of the job in [since_ms, before_ms) that began and did not end, oldest
        first. Older ones whose owner went silent are closed as failed: nobody may run them."""
        running = and_(
            job_runs.c.job == job,
            job_runs.c.state == RUNNING,
            job_runs.c.origin == "schedule",
        )
        query = (
            select(job_runs.c.tick)
            .where(running, job_runs.c.tick < before_ms)
            .order_by(job_runs.c.tick)
            .limit(1000)
        )
        async with self._database.connect(WITHIN_S) as connection:
            ticks = list((await connection.execute(query)).scalars())
        if ticks and ticks[0] < since_ms:
            error = "gave up: its owner went silent and the catch-up window has passed"
            silent = and_(
                running, job_runs.c.tick < since_ms, job_runs.c.lease_until <= database_now()
            )
            values = {"state": "failed", "finished_at": now_ms, "error": error}
            async with self._database.begin(WITHIN_S) as connection:
                await connection.execute(update(job_runs).where(silent).values(values))
        return [tick for tick in ticks if tick >= since_ms]

    async def expired(self, jobs: Iterable[str], since_ms: int) -> list[Expired]:
        """The running runs of these jobs, ticks from `since_ms`, whose lease ended: crashed owners.
        Backfills are left to whoever asks for them again."""
        query = (
            select(job_runs.c.job, job_runs.c.tick, job_runs.c.origin)
            .where(
                job_runs.c.job.in_(list(jobs)),
                job_runs.c.state == RUNNING,
                job_runs.c.origin.in_(("schedule", "manual")),
                job_runs.c.tick >= since_ms,
                job_runs.c.lease_until <= database_now(),
            )
            .limit(1000)
        )
        async with self._database.connect(WITHIN_S) as connection:
            return [Expired(*row) for row in await connection.execute(query)]

    async def clock_ms(self) -> int:
        """The database's own time, UTC epoch ms."""
        async with self._database.connect(WITHIN_S) as connection:
            return int((await connection.execute(select(database_now()))).scalar_one())

    async def states(self, job: str, since_ms: int, until_ms: int) -> dict[int, State]:
        """The state and attempt of each run of the job with a tick in [since_ms, until_ms],
        whatever began it; at most 100,000, oldest first."""
        query = (
            select(job_runs.c.tick, job_runs.c.state, job_runs.c.attempt)
            .where(job_runs.c.job == job, job_runs.c.tick.between(since_ms, until_ms))
            .order_by(job_runs.c.tick)
            .limit(_MOST_STATES)
        )
        async with self._database.connect(WITHIN_S) as connection:
            return {row.tick: (row.state, row.attempt) for row in await connection.execute(query)}

    async def history(
        self, job: str | None = None, limit: int = 50, *, tick: int | None = None
    ) -> list[dict[str, Any]]:
        """The newest runs, or those of `tick`, newest first, `limit` and 1,000 at most."""
        query = select(job_runs).order_by(job_runs.c.tick.desc()).limit(min(limit, 1000))
        if job is not None:
            query = query.where(job_runs.c.job == job)
        if tick is not None:
            query = query.where(job_runs.c.tick == tick)
        async with self._database.connect(WITHIN_S) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [dict(row) for row in rows]


def _judge(row: Row[Any], stamp: str, *, fresh: bool, again: int) -> Verdict | None:
    """What a run that was begun before means for who wants it; None: it may be taken."""
    if row.state != "running":
        return None if row.state == "failed" and row.attempt == again else _verdict("done", row)
    if row.stamp == stamp:  # committed before, and the reply was lost
        return _verdict("run", row)
    return None if row.expired and not fresh else _verdict("held", row)


def _verdict(kind: Literal["run", "done", "held"], row: Row[Any]) -> Verdict:
    return Verdict(kind, row.attempt, row.owner, row.params)


def _new_stamp() -> str:
    return uuid4().hex


def _next(key: RunKey, owner: str, lease_ms: int, fallback: bool, stamp: str) -> dict[str, Any]:
    """The row of the attempt after `key`."""
    return {
        "attempt": key.attempt + 1, "owner": owner[:200], "fallback": fallback,
        "lease_until": database_now() + lease_ms, "stamp": stamp,
    }  # fmt: skip


def _stale(key: RunKey) -> StaleAttempt:
    return StaleAttempt(f"{key}: attempt {key.attempt} is no longer current")


def _is(job: str, tick: int) -> ColumnElement[bool]:
    return and_(job_runs.c.job == job, job_runs.c.tick == tick)


def _current(key: RunKey) -> ColumnElement[bool]:
    return and_(
        _is(key.job, key.tick), job_runs.c.attempt == key.attempt, job_runs.c.state == "running"
    )
