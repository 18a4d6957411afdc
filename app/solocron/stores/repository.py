"""The table `stores`. A change of state and the notification that tells of it are one transaction.

`close_due` and `remind_due` are one conditional UPDATE of a bounded number of rows: run again, or
beside a writer that got there first, it finds nothing left to do. Whoever locks several rows does
so in the order of their ids, so no two transactions wait for each other.

The index `stores_by_hours` begins with the hours, not with `is_open`: how many stores are open
turns over twice a day, and a planner that believes yesterday's count would walk all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, Select, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import InvalidInput
from solocron.notifications.event import STORE_CLOSED, STORE_OPEN_REMINDER, STORE_OPENED
from solocron.storage import outbox
from solocron.storage.engine import Database
from solocron.storage.outbox import CHUNK, Notification
from solocron.storage.tables import stores
from solocron.stores.hours import HoursKey, shown
from solocron.stores.model import Store
from solocron.stores.told import AskedFor, Data, HoursBegan, HoursEnded

MAX_PAGE = 1000
_KEY = (stores.c.hours, stores.c.timezone, stores.c.country)
_GIVEN = ("name", "timezone", "hours", "country", "contact", "updated_at")  # an upsert's


class UnknownStore(InvalidInput):
    """No store has that id."""


class StoreRepository:
    """Reads and writes stores. Every method may raise StorageUnavailable.

    Its notifications are to be delivered on each of `channels`, beside the WebSockets.
    """

    def __init__(self, database: Database, channels: Sequence[str] = ()) -> None:
        self._database = database
        self._channels = channels

    async def get(self, store_id: str) -> Store:
        """The store with that id. Raises UnknownStore."""
        async with self._database.connect() as connection:
            return await _get(connection, store_id)

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
        query = select(stores).order_by(stores.c.id).limit(limit)
        if after is not None:
            query = query.where(stores.c.id > after)
        if is_open is not None:
            query = query.where(stores.c.is_open == is_open)
        if ids is not None:
            query = query.where(stores.c.id.in_(ids))
        async with self._database.connect() as connection:
            return [_store(row) for row in await connection.execute(query)]

    async def put(self, store: Store, now_ms: int) -> bool:
        """Create the store (True), or change what is given of it: never whether it is open."""
        fresh = self._insert().values(_values(store, now_ms)).on_conflict_do_nothing()
        given = {name: value for name, value in _values(store, now_ms).items() if name in _GIVEN}
        async with self._database.begin() as connection:
            if (await connection.execute(fresh)).rowcount == 1:
                return True
            await connection.execute(update(stores).where(stores.c.id == store.id).values(given))
            return False

    async def put_many(
        self, connection: AsyncConnection, rows: Sequence[Store], now_ms: int
    ) -> None:
        """As `put`, for many stores, in the caller's transaction."""
        upsert = self._insert()
        upsert = upsert.on_conflict_do_update(
            index_elements=["id"], set_={name: upsert.excluded[name] for name in _GIVEN}
        )
        ordered = sorted(rows, key=lambda store: store.id)
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            ids = [store.id for store in chunk]
            query = select(stores.c.id).where(stores.c.id.in_(ids)).order_by(stores.c.id)
            await connection.execute(query.with_for_update())
            await connection.execute(upsert, [_values(store, now_ms) for store in chunk])

    def _insert(self) -> Any:
        postgres = self._database.dialect == "postgresql"
        return postgres_insert(stores) if postgres else sqlite_insert(stores)

    async def hours_keys(self, is_open: bool) -> dict[HoursKey, int]:
        """Each distinct key among the open (or the closed) stores, and how many share it."""
        query = select(*_KEY, func.count()).where(stores.c.is_open == is_open).group_by(*_KEY)
        async with self._database.connect() as connection:
            rows = await connection.execute(query)
            return {HoursKey(*key): count for *key, count in rows}

    async def close_due(
        self,
        connection: AsyncConnection,
        keys: Sequence[HoursKey],
        *,
        tick: int,
        now_ms: int,
        limit: int,
    ) -> list[Notification]:
        """Close up to `limit` open stores with one of `keys`; fewer: there are no more."""
        due = _with_hours(keys).where(stores.c.is_open).limit(limit)
        rows = await _change(connection, due, {"is_open": False}, now_ms)

        def told(name: str) -> HoursEnded:
            return {"name": name, "reason": "hours-ended", "tick": _iso(tick)}

        return await self._notify(connection, STORE_CLOSED, rows, told, now_ms)

    async def remind_due(
        self,
        connection: AsyncConnection,
        keys: Sequence[HoursKey],
        *,
        tick: int,
        now_ms: int,
        limit: int,
    ) -> list[Notification]:
        """Remind up to `limit` closed stores with one of `keys` that this tick did not remind
        yet; fewer: there are no more."""
        last = stores.c.last_reminded_tick
        unreminded = or_(last.is_(None), last < tick)
        due = _with_hours(keys).where(~stores.c.is_open, unreminded).limit(limit)
        rows = await _change(connection, due, {"last_reminded_tick": tick}, now_ms)

        def told(name: str) -> HoursBegan:
            return {"name": name, "tick": _iso(tick)}

        return await self._notify(connection, STORE_OPEN_REMINDER, rows, told, now_ms)

    async def set_open(
        self, store_id: str, is_open: bool, now_ms: int
    ) -> tuple[Store, list[Notification]]:
        """Open or close one store; no notification if it already was. Raises UnknownStore."""
        due = select(stores.c.id).where(stores.c.id == store_id, stores.c.is_open != is_open)

        def told(name: str) -> AskedFor:
            return {"name": name, "reason": "api"}

        async with self._database.begin() as connection:
            rows = await _change(connection, due, {"is_open": is_open}, now_ms)
            type_ = STORE_OPENED if is_open else STORE_CLOSED
            notes = await self._notify(connection, type_, rows, told, now_ms)
            return await _get(connection, store_id), notes

    async def _notify(
        self,
        connection: AsyncConnection,
        type_: str,
        rows: Sequence[Row[Any]],
        told: Callable[[str], Data],
        now_ms: int,
    ) -> list[Notification]:
        notes = [
            Notification(row.id, row.notification_seq, type_, told(row.name), now_ms)
            for row in rows
        ]
        await outbox.append(connection, notes, self._channels)
        return notes


async def _get(connection: AsyncConnection, store_id: str) -> Store:
    row = (await connection.execute(select(stores).where(stores.c.id == store_id))).one_or_none()
    if row is None:
        raise UnknownStore(f"store {shown(store_id)}: there is none with that id")
    return _store(row)


def _with_hours(keys: Sequence[HoursKey]) -> Select[tuple[str]]:
    """Ids of stores with one of `keys`, in order.

    One key: the index has them in order. Several: sorting by an expression keeps the planner from
    walking all stores by id in the hope that LIMIT ends it soon. (SQLite finds OR in the index,
    but not a row value IN a list.)
    """
    same = [
        and_(*(column == value for column, value in zip(_KEY, key, strict=True))) for key in keys
    ]
    order = stores.c.id if len(keys) == 1 else stores.c.id.concat("")
    return select(stores.c.id).where(or_(*same)).order_by(order)


async def _change(
    connection: AsyncConnection, due: Select[tuple[str]], values: dict[str, Any], now_ms: int
) -> Sequence[Row[Any]]:
    """Change the due stores and take the next notification number of each.

    `due` decides: it locks each row, and judges anew one it had to wait for.
    """
    chosen = due.with_for_update().cte("due")
    change = (
        update(stores)
        .where(stores.c.id.in_(select(chosen.c.id)))
        .values(notification_seq=stores.c.notification_seq + 1, updated_at=now_ms, **values)
        .returning(stores.c.id, stores.c.name, stores.c.notification_seq)
    )
    return (await connection.execute(change)).all()


def _values(store: Store, now_ms: int) -> dict[str, Any]:
    return {
        "id": store.id, "name": store.name, "timezone": store.timezone, "hours": store.hours,
        "country": store.country, "is_open": store.is_open, "updated_at": now_ms,
        "contact": store.contact,
    }  # fmt: skip


def _store(row: Row[Any]) -> Store:
    return Store(**row._mapping)


def _iso(ms: int) -> str:
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
