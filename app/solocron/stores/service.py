"""Stores change, and what tells of it is written with them: one transaction, or neither.

`close_due` and `remind_due` change a bounded number of stores that are still as expected: run
again, or beside a writer that got there first, they find nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import InvalidInput
from solocron.notifications.event import (
    STORE_CLOSED,
    STORE_OPEN_REMINDER,
    STORE_OPENED,
    check_own_event,
)
from solocron.storage import outbox
from solocron.storage.counters import newest_seqs, next_seqs, next_seqs_unreminded
from solocron.storage.engine import Database
from solocron.storage.outbox import Notification
from solocron.stores.hours import HoursKey, shown
from solocron.stores.model import Store, is_store_id
from solocron.stores.repository import (
    LooksAhead,
    StoreName,
    StoreRepository,
    UnknownStore,
)
from solocron.stores.told import AskedFor, Data, HoursBegan, HoursEnded

MAX_PAGE = 1000


class Batch(NamedTuple):
    """What was told of. `last` is where the next batch begins; None: there is no more."""

    rows: list[Notification]
    last: str | None


class StoreService:
    """Reads and changes the stores of a repository. Every method may raise StorageUnavailable.

    Its notifications are to be delivered on each of `channels`, beside the WebSockets.
    """

    def __init__(
        self, repository: StoreRepository, database: Database, channels: Sequence[str] = ()
    ) -> None:
        self.repository = repository
        self._database = database
        self._channels = channels

    async def get(self, store_id: str) -> Store:
        """The store with that id. Raises UnknownStore."""
        found = await self.repository.get_many([store_id])
        if store_id not in found:
            raise _unknown(store_id)
        (store,) = await self._numbered([found[store_id]])
        return store

    async def page(
        self,
        after: str | None = None,
        limit: int = 100,
        is_open: bool | None = None,
        ids: Collection[str] | None = None,
    ) -> list[Store]:
        """Up to `limit` (at most 1,000) stores by id, those past `after` and among `ids` (None:
        all); the rest follow the last. Raises InvalidInput for another limit.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput(f"limit {limit}: ask for 1 to {MAX_PAGE} stores at a time")
        return await self._numbered(await self.repository.page(after, limit, is_open, ids))

    async def _numbered(self, stores: Sequence[Store]) -> list[Store]:
        if not stores:
            return []
        async with self._database.connect() as connection:
            seqs = await newest_seqs(connection, [each.id for each in stores])
        return [replace(each, notification_seq=seqs.get(each.id, 0)) for each in stores]

    async def put(self, store: Store, now_ms: int) -> bool:
        """Create the store (True), or change what is given of it: never whether it is open. Raises
        StoresReadOnly."""
        return await self.repository.put(store, now_ms)

    async def hours_keys(self, is_open: bool) -> Mapping[HoursKey, int]:
        """Each distinct key among the open (or the closed) stores, and how many share it."""
        return await self.repository.hours_keys(is_open)

    async def close_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, tick: int, now_ms: int,
        limit: int, after: str | None = None,
    ) -> Batch:  # fmt: skip
        """Close up to `limit` open stores with one of `keys`: none of these is open any more, so it
        does not matter `after` which the batch begins."""
        closed = await self.repository.close_due(connection, keys, now_ms=now_ms, limit=limit)
        rows = await self._tell_closed(connection, closed, tick, now_ms)
        return Batch(rows, closed[-1].id if len(closed) == limit else None)

    async def close_these(
        self, connection: AsyncConnection, due: Mapping[str, HoursKey], *, tick: int, now_ms: int
    ) -> list[Notification]:
        """Close those that are open and have these hours still. The repository looks ahead."""
        assert isinstance(self.repository, LooksAhead)
        closing = await self.repository.closing(connection, due, now_ms=now_ms)
        if self._database.dialect == "postgresql":
            data = {"reason": "hours-ended", "tick": _iso(tick)}
            return await outbox.append_with(
                connection, closing, STORE_CLOSED, data, now_ms, self._channels
            )
        found = (await connection.execute(closing)).all()
        closed = [StoreName(str(id_), name or "") for id_, name in found]
        return await self._tell_closed(connection, closed, tick, now_ms)

    async def _tell_closed(
        self, connection: AsyncConnection, closed: Sequence[StoreName], tick: int, now_ms: int
    ) -> list[Notification]:
        at = _iso(tick)

        def told(name: str) -> HoursEnded:
            return {"name": name, "reason": "hours-ended", "tick": at}

        return await self._tell(connection, STORE_CLOSED, closed, told, now_ms)

    async def remind_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, tick: int, now_ms: int,
        limit: int, after: str | None = None,
    ) -> Batch:  # fmt: skip
        """Look at up to `limit` closed stores with one of `keys` past `after`, and remind those
        that this tick did not remind yet."""
        due = await self.repository.closed(connection, keys, after=after, limit=limit)
        seqs = await next_seqs_unreminded(connection, [each.id for each in due], tick)
        at = _iso(tick)

        def told(name: str) -> HoursBegan:
            return {"name": name, "tick": at}

        rows = await self._append(connection, STORE_OPEN_REMINDER, due, seqs, told, now_ms)
        return Batch(rows, due[-1].id if len(due) == limit else None)

    async def set_open(
        self, store_id: str, is_open: bool, now_ms: int
    ) -> tuple[Store, list[Notification]]:
        """Open or close one store; no notification if it already was. Raises UnknownStore."""

        def told(name: str) -> AskedFor:
            return {"name": name, "reason": "api"}

        type_ = STORE_OPENED if is_open else STORE_CLOSED
        async with self._database.begin() as connection:
            changed = await self.repository.set_open(connection, store_id, is_open, now_ms)
            found = await self.repository.get_many([store_id], connection)
            if store_id not in found:
                raise _unknown(store_id)
            rows = await self._tell(connection, type_, [changed] if changed else [], told, now_ms)
            seqs = await newest_seqs(connection, [store_id])
        return replace(found[store_id], notification_seq=seqs.get(store_id, 0)), rows

    async def notify(
        self, connection: AsyncConnection, store_id: str, type_: str, data: Mapping[str, Any],
        now_ms: int,
    ) -> Notification:  # fmt: skip
        """Write a notification of the host's own in the caller's transaction. Raises InvalidInput
        for a type or data that cannot be one's, and UnknownStore."""
        check_own_event(type_, data)
        known = is_store_id(store_id) and (
            await newest_seqs(connection, [store_id])
            or store_id in await self.repository.get_many([store_id], connection)
        )
        if not known:
            raise _unknown(store_id)
        seqs = await next_seqs(connection, [store_id])
        row = Notification(store_id, seqs[store_id], type_, data, now_ms)
        await outbox.append(connection, [row], self._channels)
        return row

    async def _tell(
        self,
        connection: AsyncConnection,
        type_: str,
        stores: Sequence[StoreName],
        told: Callable[[str], Data],
        now_ms: int,
    ) -> list[Notification]:
        seqs = await next_seqs(connection, [each.id for each in stores])
        return await self._append(connection, type_, stores, seqs, told, now_ms)

    async def _append(
        self,
        connection: AsyncConnection,
        type_: str,
        stores: Sequence[StoreName],
        seqs: Mapping[str, int],
        told: Callable[[str], Data],
        now_ms: int,
    ) -> list[Notification]:
        """Write what those of the stores are told that have a seq."""
        rows = [
            Notification(each.id, seqs[each.id], type_, told(each.name), now_ms)
            for each in stores
            if each.id in seqs
        ]
        await outbox.append(connection, rows, self._channels)
        return rows


def _unknown(store_id: str) -> UnknownStore:
    return UnknownStore(f"store {shown(store_id)}: there is none with that id")


def _iso(ms: int) -> str:
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
