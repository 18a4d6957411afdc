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
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import StaleAttempt, StorageUnavailable
from solocron.ledger import KeptIn, RunKey, Verdict
from solocron.storage.engine import POOL_SIZE, POOL_TIMEOUT_S, Database, database_now
from solocron.storage.tables import job_runs

log = logging.getLogger("solocron.storage")

_MAX_ERROR = 2000
_GIVEN_BACK = 0  # a lease that did not end by silence
_PAUSES_S = (0.2, 1.0, 3.0)
_PATIENCE_S = 5.0
_WITHIN_S = 10.0  # each of the short transactions here
_RESERVE = 2  # connections that bodies leave to the ledger: a heartbeat may not wait for them

_T = TypeVar("_T")


class RunLedger:
    """The table `job_runs`. Every method may raise StorageUnavailable.

    What is safe to do twice is tried again, through a lost reply, a deadlock or a serialization
    failure: for a few seconds to begin a run or hand it over, and until there is an answer where
    giving up would make another server do again what is done.
    """

    kept_in: KeptIn = "database"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bodies = asyncio.Semaphore(POOL_SIZE - _RESERVE)

    @property
    def is_lost(self) -> bool:
        """Whether the database is gone (its log says so)."""
        return self._database.is_lost

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
        stamp = _new_stamp()
        insert = postgres_insert if self._database.dialect == "postgresql" else sqlite_insert
        fresh = insert(job_runs).values(
            job=job, tick=tick, attempt=1, state="running", owner=owner[:200], origin=origin,
            fallback=fallback, started_at=now_ms, lease_until=database_now() + lease_ms,
            stamp=stamp,
        ).on_conflict_do_nothing()  # fmt: skip

        async def ask() -> Verdict:
            async with self._database.begin(_WITHIN_S) as connection:
                if (await connection.execute(fresh)).rowcount == 1:
                    return Verdict("run", 1, owner)
                columns = (
                    job_runs.c.attempt, job_runs.c.state, job_runs.c.owner, job_runs.c.stamp,
                    job_runs.c.lease_until,
                )  # fmt: skip
                expired = (job_runs.c.lease_until <= database_now()).label("expired")
                query = select(*columns, expired).where(_is(job, tick)).with_for_update()
                row = (await connection.execute(query)).one()
                if row.state != "running":
                    return Verdict("done", row.attempt, row.owner)
                if row.stamp == stamp:  # committed before, and the reply was lost
                    return Verdict("run", row.attempt, row.owner)
                if not row.expired:
                    return Verdict("held", row.attempt, row.owner)
                key = RunKey(job, tick, row.attempt)
                if row.attempt >= max_attempts and row.lease_until != _GIVEN_BACK:
                    await self._close_crashed(connection, key, now_ms)
                    return Verdict("done", row.attempt, row.owner)
                values = _next(key, owner, lease_ms, fallback, stamp)
                await connection.execute(update(job_runs).where(_current(key)).values(values))
                return Verdict("run", row.attempt + 1, row.owner)

        return await _patiently(ask)

    async def _close_crashed(self, connection: AsyncConnection, key: RunKey, now_ms: int) -> None:
        error = f"gave up: {key.attempt} attempts ended without a word from their owner"
        values = {"state": "failed", "finished_at": now_ms, "error": error}
        await connection.execute(update(job_runs).where(_current(key)).values(values))

    async def retry(self, key: RunKey, *, owner: str, lease_ms: int, fallback: bool) -> bool:
        """Open the next attempt of a failed one; False when another server already did."""
        stamp = _new_stamp()
        opening = partial(self._update, key, _next(key, owner, lease_ms, fallback, stamp))
        if await _until_answered(opening, key):
            return True
        return (await _until_answered(partial(self._last, key), key))[1] == stamp

    async def _update(self, key: RunKey, values: Mapping[str, Any]) -> bool:
        """Change the run's row; False when the attempt is no longer current."""
        async with self._database.begin(_WITHIN_S) as connection:
            done = await connection.execute(update(job_runs).where(_current(key)).values(values))
            return bool(done.rowcount)

    async def _last(self, key: RunKey) -> tuple[int, str | None]:
        """The run's attempt, and the stamp of its last committed transaction."""
        columns = select(job_runs.c.attempt, job_runs.c.stamp)
        query = columns.where(_is(key.job, key.tick)).with_for_update()
        async with self._database.begin(_WITHIN_S) as connection:
            row = (await connection.execute(query)).one()
            return row.attempt, row.stamp

    async def heartbeat(self, key: RunKey, lease_ms: int) -> bool:
        """Extend the lease; False when the attempt is no longer current. Not tried again: the
        next one is due soon."""
        return await self._update(key, {"lease_until": database_now() + lease_ms})

    async def hand_over(self, key: RunKey, *, stopping: bool = False) -> None:
        """End the lease now, so that another server may take the run over at once. One that is
        `stopping` gives it back: a deploy of many servers uses up no attempts."""
        until = _GIVEN_BACK if stopping else database_now()
        await _patiently(partial(self._update, key, {"lease_until": until}))

    async def finish(
        self,
        key: RunKey,
        *,
        now_ms: int,
        duration_ms: int,
        result: Mapping[str, int] | None = None,
        error: str | None = None,
    ) -> bool:
        """Write how the run ended, however long that takes; False when the attempt is no longer
        current. May be asked again: what this attempt wrote stays as it is."""
        state = "failed" if error is not None else "succeeded"
        values = {
            "state": state,
            "finished_at": now_ms,
            "duration_ms": duration_ms,
            "result": json.dumps(dict(result)) if result else None,
            "error": error[:_MAX_ERROR] if error is not None else None,
        }
        ours = and_(
            _is(key.job, key.tick),
            job_runs.c.attempt == key.attempt,
            job_runs.c.state.in_(("running", state)),
        )

        async def write() -> bool:
            async with self._database.begin(_WITHIN_S) as connection:
                done = await connection.execute(update(job_runs).where(ours).values(values))
                return bool(done.rowcount)

        return await _until_answered(write, key)

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
            async with asyncio.timeout(_WITHIN_S):
                found = await connection.execute(fence)
        except TimeoutError:
            raise StorageUnavailable(f"no answer within {_WITHIN_S:g} s") from None
        if found.rowcount != 1:
            raise _stale(key)

    async def answers(self) -> None:
        """Raise StorageUnavailable unless the database answers."""
        async with self._database.connect(_WITHIN_S):
            pass

    async def _was_committed(self, key: RunKey, stamp: str) -> bool:
        """Raises StaleAttempt after a takeover, whose own stamp hides the answer."""
        attempt, last = await _until_answered(partial(self._last, key), key)
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
        async with self._database.connect(_WITHIN_S) as connection:
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
        async with self._database.connect(_WITHIN_S) as connection:
            ticks = list((await connection.execute(query)).scalars())
        if ticks and ticks[0] < since_ms:
            error = "gave up: its owner went silent and the catch-up window has passed"
            silent = and_(
                running, job_runs.c.tick < since_ms, job_runs.c.lease_until <= database_now()
            )
            values = {"state": "failed", "finished_at": now_ms, "error": error}
            async with self._database.begin(_WITHIN_S) as connection:
                await connection.execute(update(job_runs).where(silent).values(values))
        return [tick for tick in ticks if tick >= since_ms]

    async def expired(self, jobs: Iterable[str], since_ms: int) -> list[tuple[str, int]]:
        """(job, tick) of running runs, ticks from `since_ms`, whose lease ended: crashed owners."""
        query = (
            select(job_runs.c.job, job_runs.c.tick)
            .where(
                job_runs.c.job.in_(list(jobs)),
                job_runs.c.state == "running",
                job_runs.c.origin == "schedule",
                job_runs.c.tick >= since_ms,
                job_runs.c.lease_until <= database_now(),
            )
            .limit(1000)
        )
        async with self._database.connect(_WITHIN_S) as connection:
            return [(row.job, row.tick) for row in await connection.execute(query)]

    async def clock_ms(self) -> int:
        """The database's own time, UTC epoch ms."""
        async with self._database.connect(_WITHIN_S) as connection:
            return int((await connection.execute(select(database_now()))).scalar_one())

    async def history(
        self, job: str | None = None, limit: int = 50, *, tick: int | None = None
    ) -> list[dict[str, Any]]:
        """The newest runs, or those of `tick`, newest first, `limit` and 1,000 at most."""
        query = select(job_runs).order_by(job_runs.c.tick.desc()).limit(min(limit, 1000))
        if job is not None:
            query = query.where(job_runs.c.job == job)
        if tick is not None:
            query = query.where(job_runs.c.tick == tick)
        async with self._database.connect(_WITHIN_S) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [dict(row) for row in rows]


@asynccontextmanager
async def held(
    turn: asyncio.Lock | asyncio.Semaphore, within_s: float, complaint: str
) -> AsyncIterator[None]:
    """Have the turn while the enclosed code runs; StorageUnavailable with the complaint when it is
    not had within `within_s` s."""
    try:
        async with asyncio.timeout(within_s):
            await turn.acquire()
    except TimeoutError:
        raise StorageUnavailable(complaint) from None
    try:
        yield
    finally:
        turn.release()


async def _patiently(operation: Callable[[], Awaitable[_T]]) -> _T:
    """Try again, for a few seconds, what may be done twice; not after a wait for a lock or a
    connection that was as long."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_S
    for pause in _PAUSES_S:
        try:
            return await operation()
        except StorageUnavailable:
            if loop.time() + pause > until:
                raise
        await asyncio.sleep(pause)
    return await operation()


async def _until_answered(operation: Callable[[], Awaitable[_T]], key: RunKey) -> _T:
    """Try again what may be done twice until the database answers: a lost lease or the end of the
    process ends it, by cancellation."""
    level = logging.WARNING
    while True:
        try:
            return await _patiently(operation)
        except StorageUnavailable as error:
            log.log(level, "%s tick %d waits for its ledger: %s", key.job, key.tick, error)
            level = logging.DEBUG
            await asyncio.sleep(_PAUSES_S[-1])


def _new_stamp() -> str:
    return uuid4().hex


def _next(key: RunKey, owner: str, lease_ms: int, fallback: bool, stamp: str) -> dict[str, Any]:
    """The row of the attempt after `key`."""
    return {
        "attempt": key.attempt + 1, "owner": owner[:200], "fallback": fallback,
        "lease_until": database_now() + lease_ms, "stamp": stamp,
    }  # fmt: skip


def _stale(key: RunKey) -> StaleAttempt:
    return StaleAttempt(f"{key.job} tick {key.tick}: attempt {key.attempt} is no longer current")


def _is(job: str, tick: int) -> ColumnElement[bool]:
    return and_(job_runs.c.job == job, job_runs.c.tick == tick)


def _current(key: RunKey) -> ColumnElement[bool]:
    return and_(
        _is(key.job, key.tick), job_runs.c.attempt == key.attempt, job_runs.c.state == "running"
    )
