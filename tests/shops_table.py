"""A host's own table of shops, with names and types of its own, and stores kept by an adapter."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage.engine import Database
from solocron.stores import HoursKey, Store, StoreName, StoresReadOnly, StoreTable

SHOPS = StoreTable(
    "shops",
    columns={"id": "shop_id", "name": "title", "hours": "opening_hours", "is_open": "open"},
    timezone="Europe/Berlin",
)
SHOPS_SETTINGS = {
    "SOLOCRON_STORES_TABLE": "shops",
    "SOLOCRON_STORES_COLUMNS": "id=shop_id name=title hours=opening_hours is_open=open "
    "timezone='Europe/Berlin'",
}
_TABLE = (
    "CREATE TABLE shops (shop_id INTEGER PRIMARY KEY, title VARCHAR(80), opening_hours TEXT, "
    "open SMALLINT NOT NULL, owner TEXT NOT NULL)",
    "CREATE INDEX shops_by_hours ON shops (opening_hours, open, shop_id)",
)
_PUT = "INSERT INTO shops VALUES (:id, :name, :hours, :open, 'somebody')"


async def create_shops(database: Database) -> None:
    async with database.begin() as connection:
        for statement in _TABLE:
            await connection.execute(text(statement))


async def put_shops(database: Database, stores: Sequence[Store]) -> None:
    async with database.begin() as connection:
        for each in stores:
            row = {"id": int(each.id), "name": each.name, "hours": each.hours,
                   "open": int(each.is_open)}  # fmt: skip
            await connection.execute(text(_PUT), row)


class Adapter:
    """A repository as a host would write one: over a table whose hours are columns of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self) -> None:
        async with self._database.begin() as connection:
            await connection.execute(
                text("CREATE TABLE places (id TEXT PRIMARY KEY, label TEXT, day TEXT, state TEXT)")
            )

    async def add(self, stores: Sequence[Store]) -> None:
        async with self._database.begin() as connection:
            for each in stores:
                await connection.execute(
                    text("INSERT INTO places VALUES (:id, :label, :day, :state)"),
                    {"id": each.id, "label": each.name, "day": each.hours,
                     "state": "open" if each.is_open else "closed"},
                )  # fmt: skip

    async def check(self) -> None: ...

    async def _all(self, connection: AsyncConnection, lock: bool = False) -> list[Store]:
        query = "SELECT id, label, day, state FROM places ORDER BY id"
        if lock and self._database.dialect == "postgresql":
            query += " FOR UPDATE"
        rows = await connection.execute(text(query))
        return [Store(row.id, row.label, "Europe/Berlin", row.day, is_open=row.state == "open")
                for row in rows]  # fmt: skip

    async def get_many(
        self, store_ids: Collection[str], connection: AsyncConnection | None = None
    ) -> Mapping[str, Store]:
        if connection is None:
            async with self._database.connect() as connection:
                return await self.get_many(store_ids, connection)
        return {each.id: each for each in await self._all(connection) if each.id in store_ids}

    async def page(
        self, after: str | None = None, limit: int = 100, is_open: bool | None = None,
        ids: Collection[str] | None = None,
    ) -> Sequence[Store]:  # fmt: skip
        async with self._database.connect() as connection:
            stores = await self._all(connection)
        return [
            each
            for each in stores
            if (after is None or each.id > after)
            and (is_open is None or each.is_open == is_open)
            and (ids is None or each.id in ids)
        ][:limit]

    async def put(self, store: Store, now_ms: int) -> bool:
        raise StoresReadOnly("places are the host's")

    async def hours_keys(self, is_open: bool) -> Mapping[HoursKey, int]:
        return Counter(_key(each) for each in await self.page(limit=10_000, is_open=is_open))

    async def close_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, now_ms: int, limit: int
    ) -> Sequence[StoreName]:
        due = [each for each in await self._all(connection, lock=True)
               if each.is_open and _key(each) in keys][:limit]  # fmt: skip
        for each in due:
            await self._set(connection, each.id, "closed")
        return [StoreName(each.id, each.name) for each in due]

    async def closed(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, after: str | None,
        limit: int,
    ) -> Sequence[StoreName]:  # fmt: skip
        stores = await self._all(connection, lock=True)
        return [
            StoreName(each.id, each.name)
            for each in stores
            if not each.is_open and _key(each) in keys and (after is None or each.id > after)
        ][:limit]

    async def set_open(
        self, connection: AsyncConnection, store_id: str, is_open: bool, now_ms: int
    ) -> StoreName | None:
        for each in await self._all(connection, lock=True):
            if each.id == store_id and each.is_open != is_open:
                await self._set(connection, store_id, "open" if is_open else "closed")
                return StoreName(each.id, each.name)
        return None

    async def _set(self, connection: AsyncConnection, store_id: str, state: str) -> None:
        await connection.execute(
            text("UPDATE places SET state = :state WHERE id = :id"),
            {"state": state, "id": store_id},
        )


def _key(store: Store) -> HoursKey:
    return HoursKey(store.hours, store.timezone, store.country)


# -- adapters with a mistake each ----------------------------------------------------------------


class ForgetsCondition(Adapter):
    """It closes whatever has those hours."""

    async def close_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, now_ms: int, limit: int
    ) -> Sequence[StoreName]:
        due = [each for each in await self._all(connection, lock=True) if _key(each) in keys]
        for each in due[:limit]:
            await self._set(connection, each.id, "closed")
        return [StoreName(each.id, each.name) for each in due[:limit]]


class IgnoresLimit(Adapter):
    """It closes all that is due."""

    async def close_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, now_ms: int, limit: int
    ) -> Sequence[StoreName]:
        return await super().close_due(connection, keys, now_ms=now_ms, limit=10_000)


class LocksNothing(Adapter):
    """It decides by what it read before others changed it."""

    async def _all(self, connection: AsyncConnection, lock: bool = False) -> list[Store]:
        found = await super()._all(connection)
        await asyncio.sleep(0.02)
        return found


class CommitsByItself(Adapter):
    """It changes stores beside the transaction it was given."""

    async def _set(self, connection: AsyncConnection, store_id: str, state: str) -> None:
        async with self._database.begin() as own:
            await super()._set(own, store_id, state)


class ReadsBeside(Adapter):
    """It does not see what the transaction has changed."""

    async def get_many(
        self, store_ids: Collection[str], connection: AsyncConnection | None = None
    ) -> Mapping[str, Store]:
        return await super().get_many(store_ids, None)


class RepeatsPages(Adapter):
    """Its pages begin with the last store of the page before."""

    async def page(self, after: str | None = None, *more: Any, **named: Any) -> Sequence[Store]:
        return await super().page(after[:-1] if after else None, *more, **named)


class ForgetsPlace(Adapter):
    """It lists closed stores from the beginning, whatever is asked for."""

    async def closed(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, after: str | None,
        limit: int,
    ) -> Sequence[StoreName]:  # fmt: skip
        return await super().closed(connection, keys, after=None, limit=limit)


class Numbers(Adapter):
    """It counts notifications, which is not its business."""

    async def _all(self, connection: AsyncConnection, lock: bool = False) -> list[Store]:
        found = await super()._all(connection, lock)
        return [replace(each, notification_seq=1) for each in found]
