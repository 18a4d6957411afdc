"""Which worker tells of an alert: the one that claimed it, and that it is over: the one that found
so first.

An alert is claimed in the database, and then in Redis; without the database in Redis alone. So any
two workers that reach one of them in common do not both tell. Where there is no database it is
Redis alone. Where it was claimed is its home,
which decides that it is over: nobody has held it for a while. A home that is away is waited for. A
worker that reaches neither tells alone, and then others may, too: the one case in which an alert is
told more than once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from solocron.alerts.shared import Home, SharedAlerts
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.storage.alerts import Alert, AlertId

log = logging.getLogger("solocron.alerts")

_WITHIN_S = 3.0
_T = TypeVar("_T")

Claim = Literal["ours", "theirs", "alone"]


@dataclass(frozen=True)
class View:
    """The raised alerts that could be read, each with its home, and whether nobody holds it any
    more. `database`, `redis`: which of the two could be asked."""

    alerts: Sequence[tuple[Alert, bool, Home]]
    database: bool
    redis: bool

    @property
    def raised(self) -> list[Alert]:
        """Those that are not over."""
        return [alert for alert, over, _ in self.alerts if not over]

    def lacks(self, id_: AlertId) -> bool:
        """Whether the alert is surely not raised in the fleet."""
        return self.database and self.redis and all(alert.id != id_ for alert, _, _ in self.alerts)


class Table(Protocol):
    """The database's side of it: `storage.alerts.AlertTable`, or `NoTable`."""

    async def take(self, alert: Alert, hold_ms: int) -> bool | None:
        """Whether it was added; None: nothing is added here."""

    async def hold(self, ids: Iterable[AlertId], hold_ms: int) -> set[AlertId]:
        """Hold these on; those that are there."""

    async def drop(self, id_: AlertId, *, before_ms: int | None = None) -> bool:
        """Take it out; whether it was this call that did."""

    async def all(self) -> list[tuple[Alert, bool]]:
        """The raised alerts, each with whether nobody holds it any more."""


class NoTable:
    """The table of a service without a database: there is nothing in it, which is an answer."""

    async def take(self, alert: Alert, hold_ms: int) -> bool | None:
        """Leave it to Redis."""
        return None

    async def hold(self, ids: Iterable[AlertId], hold_ms: int) -> set[AlertId]:
        """None is there."""
        return set()

    async def drop(self, id_: AlertId, *, before_ms: int | None = None) -> bool:
        """It was not there."""
        return False

    async def all(self) -> list[tuple[Alert, bool]]:
        """None."""
        return []


class Fleet:
    """Claims, holds and ends alerts for all workers. Raises nothing but cancellation."""

    def __init__(self, table: Table, shared: SharedAlerts) -> None:
        self._table = table
        self._shared = shared

    async def claim(self, alert: Alert, hold_ms: int) -> Claim:
        """Whether this worker is to tell of an alert, which is held for `hold_ms`."""
        database = await _answer(self._table.take(alert, hold_ms))
        if database is False:
            return "theirs"
        home: Home = "redis" if database is None else "database"
        redis = await _answer(self._shared.take(alert, hold_ms, home))
        if redis is False:
            if database:
                await _answer(self._table.drop(alert.id, before_ms=alert.since_ms + 1))
            return "theirs"
        return "alone" if database is None and redis is None else "ours"

    async def hold(self, ids: Collection[AlertId], hold_ms: int) -> set[AlertId]:
        """Say that these go on; those that are raised no more, as far as both could be asked."""
        database = await _answer(self._table.hold(ids, hold_ms))
        redis = await _answer(self._shared.hold(ids, hold_ms))
        if database is None or redis is None:
            return set()
        return set(ids) - database - redis

    async def end(self, id_: AlertId, home: Home, *, before_ms: int | None = None) -> bool:
        """Take out an alert that nobody holds, or one of before `before_ms`. Whether this worker is
        to tell that it is over."""
        if home == "redis":
            ended = bool(await _answer(self._shared.drop(id_, home, before_ms=before_ms)))
            if ended:  # a row whose insert was not answered
                await _answer(self._table.drop(id_, before_ms=before_ms))
            return ended
        dropped = await _answer(self._table.drop(id_, before_ms=before_ms))
        if dropped is not None:  # the copy goes with it, also one that was left
            await _answer(self._shared.drop(id_, home, before_ms=before_ms))
        return bool(dropped)

    async def view(self, *, of_database: bool = True) -> View:
        """What is raised now; the database is asked only if so wanted, or while Redis is away."""
        redis = await _answer(self._shared.all())
        ask = of_database or redis is None
        database = await _answer(self._table.all()) if ask else None
        found: dict[AlertId, tuple[Alert, bool, Home]] = {}
        for alert, over, home in redis or []:
            if home == "redis" or database is None:
                found[alert.id] = (alert, over, "redis" if home == "redis" else "database")
        for alert, over in database or []:
            found.setdefault(alert.id, (alert, over, "database"))
        return View(list(found.values()), database is not None, redis is not None)

    async def close(self) -> None:
        """Close the connection. Safe to call twice; a later call connects again."""
        await self._shared.close()


async def _answer(question: Awaitable[_T]) -> _T | None:
    """The answer; None if there is none."""
    try:
        async with asyncio.timeout(_WITHIN_S):
            return await question
    except (LockUnavailable, StorageUnavailable, TimeoutError) as error:
        log.debug("no answer: %s", error)
        return None
