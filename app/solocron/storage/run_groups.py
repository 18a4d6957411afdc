"""What the ledger writes of many runs at once: in one statement, and so with one commit.

Ticks come together: a hundred jobs are due at the same second. With a transaction for each, the
last of them would wait for the hundred before. So what is asked in one turn of the event loop, or
while the turns before are answered, is asked together. Each run has a row of its own, and what
stands in one refuses no other; but a statement may fail, or wait for another server, because of
one of them. Then each asks for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Text,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from solocron.errors import StorageUnavailable
from solocron.storage.engine import Database, database_now
from solocron.storage.listed import as_json, table_of
from solocron.storage.tables import job_runs
from solocron.together import Together

WITHIN_S = 10.0  # each of the ledger's short transactions
RUNNING: ColumnElement[str] = literal_column(
    "'running'"
)  # in its text, for the index of such runs is looked for
_TOGETHER_S = 3.0  # for what takes milliseconds, unless one of them waits for another server
_MOST = 200
_TURNS = 3

Statement = ReturningInsert[Any] | ReturningUpdate[Any]
_Columns = Mapping[str, ColumnElement[Any]]


class Opening(NamedTuple):
    """A first attempt: columns of `job_runs`, and for how many ms from now on its lease lasts."""

    job: str
    tick: int
    owner: str
    fallback: bool
    started_at: int
    stamp: str
    lease_ms: int


class Ending(NamedTuple):
    """How an attempt ended: columns of `job_runs`; without `progress` the last one stays."""

    job: str
    tick: int
    attempt: int
    state: str
    finished_at: int
    duration_ms: int
    result: str | None
    error: str | None
    progress: str | None


_R = TypeVar("_R", Opening, Ending)


class RunGroups(Generic[_R]):
    """Writes rows by a statement that returns the job and the tick of each that it did write."""

    def __init__(self, database: Database, statement: Statement) -> None:
        self._database = database
        self._statement = statement
        self._together: Together[_R, bool] = Together(
            self._write_together, most=_MOST, turns=asyncio.Semaphore(_TURNS)
        )

    async def write(self, row: _R) -> bool:
        """Write it with those of others; whether it was. Raises StorageUnavailable: it may have
        been, or has to be written alone."""
        return row in await self._together([row])

    async def write_all(self, rows: Collection[_R]) -> Mapping[_R, bool]:
        """Write them; those that were. Raises StorageUnavailable."""
        # All servers write in one order, so that none waits for one that waits for it.
        in_order = sorted(rows, key=lambda each: each[:2])
        given = {"rows": as_json(in_order)}
        async with self._database.begin(WITHIN_S) as connection:
            found = {tuple(row) for row in await connection.execute(self._statement, given)}
        return {each: True for each in in_order if each[:2] in found}

    async def _write_together(self, rows: Collection[_R]) -> Mapping[_R, bool]:
        try:
            # The server hears of this end, unlike that of a connection that is cut: what was
            # written for the others is not in their way any more.
            async with asyncio.timeout(_TOGETHER_S):
                return await self.write_all(rows)
        except TimeoutError:
            raise StorageUnavailable("one of many runs waits for another server") from None
        except DBAPIError as error:  # of one of them, which hears it when it is written alone
            raise StorageUnavailable(str(error)) from error


def opening(dialect: str) -> Statement:
    """Begins the scheduled runs that nobody began, but for those of a job of which an earlier one
    began and did not end."""
    given = _given(dialect, Opening._fields)
    earlier = job_runs.alias("earlier").c
    unfinished = exists().where(
        earlier.job == given["job"], earlier.tick < given["tick"], earlier.state == RUNNING,
        earlier.origin == "schedule",
    )  # fmt: skip
    values = {each: given[each] for each in Opening._fields[:-1]} | {
        "attempt": literal(1), "state": literal("running"), "origin": literal("schedule"),
        "lease_until": database_now() + given["lease_ms"],
    }  # fmt: skip
    rows = select(*values.values()).where(~unfinished)
    insert = postgres_insert if dialect == "postgresql" else sqlite_insert
    insertion = insert(job_runs).from_select(list(values), rows).on_conflict_do_nothing()
    return insertion.returning(job_runs.c.job, job_runs.c.tick)


def ending(dialect: str) -> Statement:
    """Ends the runs whose attempt is current and did not end otherwise."""
    runs, given = job_runs.c, _given(dialect, Ending._fields)
    values = {each: given[each] for each in Ending._fields[3:]}
    values["progress"] = func.coalesce(given["progress"], runs.progress)
    current = [runs[each] == given[each] for each in Ending._fields[:3]]
    ours = runs.state.in_(("running", given["state"]))
    return update(job_runs).where(*current, ours).values(values).returning(runs.job, runs.tick)


def _given(dialect: str, names: Sequence[str]) -> _Columns:
    """The columns of the rows that a statement is given: its text is the same for any number of
    them, and prepared once."""
    types = {each: job_runs.c[each].type if each in job_runs.c else BigInteger() for each in names}
    return dict(table_of(dialect, bindparam("rows", type_=Text()), types).c)
