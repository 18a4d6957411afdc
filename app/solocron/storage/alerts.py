"""The raised alerts of all workers, a row each: whose insert succeeds tells of it, as does whose
delete.

A row is held: workers for which the alert is raised move `held_until` on. One that nobody holds any
more is over. Times of holding are judged by the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Update, and_, case, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from solocron.storage.engine import Database, database_now
from solocron.storage.tables import alerts

MAX_TEXT = 500
MAX_ABOUT = 100  # of the job, or the worker, that an alert is about
MAX_ALERTS = 1000
_WITHIN_S = 5.0

AlertId = tuple[str, str]


@dataclass(frozen=True)
class Alert:
    """Something an operator should know: `name` says what, `job` of which job ('': of none), or
    of `worker-silent` which worker.

    `began_ms`: since when (UTC epoch ms), of what a run did its tick; `since_ms`: the same, by the
    last worker, or run, that found it so. `severity` is `critical` or `warning`; `text` is a
    sentence for people.
    """

    name: str
    job: str
    since_ms: int
    text: str
    severity: str
    began_ms: int

    @property
    def id(self) -> AlertId:
        """What tells it from other alerts."""
        return (self.name, self.job)


class AlertTable:
    """The table. Every method may raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, alert: Alert, hold_ms: int) -> bool:
        """Add the alert, held for `hold_ms`; False if it is there already: then it is held on, and
        dates from the later of the two, though it began as it did."""
        insert = postgres_insert if self._database.dialect == "postgresql" else sqlite_insert
        fresh = insert(alerts).values(
            alert=alert.name, job=alert.job, severity=alert.severity, text=alert.text[:MAX_TEXT],
            since=alert.since_ms, held_until=database_now() + hold_ms, began=alert.began_ms,
        ).on_conflict_do_nothing()  # fmt: skip
        async with self._database.begin(_WITHIN_S) as connection:
            if (await connection.execute(fresh)).rowcount == 1:
                return True
            newest = case((alerts.c.since < alert.since_ms, alert.since_ms), else_=alerts.c.since)
            await connection.execute(_hold([alert.id], hold_ms).values(since=newest))
            return False

    async def hold(self, ids: Iterable[AlertId], hold_ms: int) -> set[AlertId]:
        """Hold these on; those that are there."""
        wanted = list(ids)
        async with self._database.begin(_WITHIN_S) as connection:
            await connection.execute(_hold(wanted, hold_ms))
            query = select(alerts.c.alert, alerts.c.job).where(_any_of(wanted))
            return {(row.alert, row.job) for row in await connection.execute(query)}

    async def drop(self, id_: AlertId, *, before_ms: int | None = None) -> bool:
        """Take out an alert that nobody holds, or one of before `before_ms`; whether it was this
        call that did."""
        over = (
            alerts.c.held_until <= database_now()
            if before_ms is None
            else alerts.c.since < before_ms
        )
        async with self._database.begin(_WITHIN_S) as connection:
            done = await connection.execute(delete(alerts).where(_any_of([id_]), over))
            return bool(done.rowcount)

    async def all(self) -> list[tuple[Alert, bool]]:
        """The raised alerts, oldest first, each with whether nobody holds it any more."""
        over = (alerts.c.held_until <= database_now()).label("over")
        query = select(alerts, over).order_by(alerts.c.since).limit(MAX_ALERTS)
        async with self._database.connect(_WITHIN_S) as connection:
            return [(_alert(row), bool(row.over)) for row in await connection.execute(query)]


def _alert(row: Row[Any]) -> Alert:
    began = row.since if row.began is None else row.began
    return Alert(row.alert, row.job, row.since, row.text, row.severity, began)


def _any_of(ids: Iterable[AlertId]) -> ColumnElement[bool]:
    return or_(*(and_(alerts.c.alert == name, alerts.c.job == job) for name, job in ids))


def _hold(ids: Iterable[AlertId], hold_ms: int) -> Update:
    until = database_now() + hold_ms
    longer = case((alerts.c.held_until < until, until), else_=alerts.c.held_until)
    return update(alerts).where(_any_of(ids)).values(held_until=longer)
