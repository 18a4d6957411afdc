"""Stores in a table of the database: solocron's own, or one the host has already.

What changes stores is a conditional UPDATE of a bounded number of rows. Whoever locks several rows
does so in the order of their ids, so no two transactions wait for each other.

The index `stores_by_hours` begins with the hours, not with `is_open`: how many stores are open
turns over twice a day, and a planner that believes yesterday's count would walk all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import InvalidInput
from solocron.storage.engine import Database
from solocron.storage.outbox import CHUNK
from solocron.storage.tables import stores
from solocron.stores.columns import (
    FIELDS,
    KEY,
    MAX_ID,
    REQUIRED,
    Layout,
    check_names,
    layout_of,
    missing_indexes,
    own_layout,
    parse_columns,
)
from solocron.stores.hours import HoursKey, shown
from solocron.stores.model import Store
from solocron.stores.repository import StoreName, StoresReadOnly

log = logging.getLogger("solocron.stores")

_GIVEN = ("name", "timezone", "hours", "country", "contact", "updated_at")  # an upsert's


@dataclass(frozen=True)
class StoreTable:
    """Where stores are kept: without arguments, in solocron's own table.

    `columns` says which column of the table `name` (in `schema`) is a store's id, name, hours,
    is_open, timezone, country or contact. One that is not named is called so itself, or, of country
    and contact, is not there. Without a column for it, `timezone` (None in `columns`) or `country`
    is that of all stores. Raises ConfigError for a description no table can have.

    ```python
    StoreTable("shops", columns={"id": "shop_id", "is_open": "open", "timezone": None},
               timezone="Europe/Berlin")
    ```
    """

    name: str = "stores"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    schema: str | None = None
    timezone: str = ""
    country: str = ""

    def __post_init__(self) -> None:
        if self.timezone and "timezone" not in self.columns:
            object.__setattr__(self, "columns", {**self.columns, "timezone": None})
        check_names(self.name, self.schema, self.columns, self.timezone, self.country)

    @property
    def _is_own(self) -> bool:
        """Whether it is the table that solocron creates."""
        return self == StoreTable()

    def on(self, database: Database) -> TableStores:
        """The stores in that table of `database`, which is not touched yet."""
        return TableStores(self, database)

    def _mapped(self) -> dict[str, str]:
        """The columns by what they are to us."""
        same = (*REQUIRED, "timezone")
        named = {each: self.columns.get(each, each if each in same else None) for each in FIELDS}
        return {each: column for each, column in named.items() if column is not None}


def parse_table(name: str, columns: str = "") -> StoreTable:
    """The table `name` or `schema.name`; `columns` as `SOLOCRON_STORES_COLUMNS` has them. Raises
    ConfigError."""
    schema, dot, table = name.rpartition(".")
    return StoreTable(table, schema=schema if dot else None, **parse_columns(columns))


class TableStores:
    """A StoreRepository over a table. What its methods promise stands there."""

    def __init__(self, where: StoreTable, database: Database) -> None:
        self._where = where
        self._database = database
        self._known = own_layout() if where._is_own else None

    async def check(self) -> None:
        """Look at a host's table. Raises ConfigError; warns of an index that is missing."""
        if self._where._is_own:
            return
        async with self._database.connect() as connection:
            layout = await self._layout(connection)
            missing = await connection.run_sync(missing_indexes, layout)
        for why, statement in missing:
            log.warning("Table %s: %s; run: %s", self._where.name, why, statement)

    async def _layout(self, connection: AsyncConnection) -> Layout:
        if self._known is None:
            where = self._where
            self._known = await connection.run_sync(
                layout_of, where.name, where.schema, where._mapped(), where.timezone, where.country
            )
        return self._known

    # -- reading ---------------------------------------------------------------------------

    async def get_many(
        self, store_ids: Collection[str], connection: AsyncConnection | None = None
    ) -> dict[str, Store]:
        if connection is None:
            async with self._database.connect() as connection:
                return await self.get_many(store_ids, connection)
        layout = await self._layout(connection)
        found = await connection.execute(_columns(layout).where(_among(layout, store_ids)))
        return {each.id: each for each in (_store(layout, row) for row in found)}

    async def page(
        self,
        after: str | None = None,
        limit: int = 100,
        is_open: bool | None = None,
        ids: Collection[str] | None = None,
    ) -> list[Store]:
        async with self._database.connect() as connection:
            layout = await self._layout(connection)
            query = _columns(layout).order_by(layout.columns["id"]).limit(limit)
            query = query.where(*_past(layout, after), *_short(layout))
            if is_open is not None:
                query = query.where(_is(layout, is_open))
            if ids is not None:
                query = query.where(_among(layout, ids))
            return [_store(layout, row) for row in await connection.execute(query)]

    async def hours_keys(self, is_open: bool) -> dict[HoursKey, int]:
        async with self._database.connect() as connection:
            layout = await self._layout(connection)
            names = [each for each in KEY if each in layout.columns]
            columns = [layout.columns[each] for each in names]
            query = select(*columns, func.count().label("count_")).where(
                _is(layout, is_open), layout.columns["hours"].is_not(None), *_short(layout)
            )
            found: dict[HoursKey, int] = {}
            for *values, count in await connection.execute(query.group_by(*columns)):
                given = dict(zip(names, values, strict=True))
                key = HoursKey(
                    given["hours"],
                    given.get("timezone", layout.timezone) or "",
                    given.get("country", layout.country) or "",
                )
                found[key] = found.get(key, 0) + count
            return found

    # -- changing --------------------------------------------------------------------------

    async def close_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, now_ms: int, limit: int
    ) -> list[StoreName]:
        layout = await self._layout(connection)
        due = _with_hours(layout, keys).where(_is(layout, True)).limit(limit)
        return await _change(connection, layout, due, False, now_ms)

    async def closed(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, after: str | None,
        limit: int,
    ) -> list[StoreName]:  # fmt: skip
        layout = await self._layout(connection)
        due = _with_hours(layout, keys).add_columns(layout.columns["name"].label("name"))
        due = due.where(_is(layout, False), *_past(layout, after)).limit(limit)
        rows = await connection.execute(due.with_for_update())
        return [_named(row) for row in rows]

    async def set_open(
        self, connection: AsyncConnection, store_id: str, is_open: bool, now_ms: int
    ) -> StoreName | None:
        layout = await self._layout(connection)
        due = select(layout.columns["id"].label("id"))
        due = due.where(_among(layout, [store_id]), _is(layout, not is_open))
        changed = await _change(connection, layout, due, is_open, now_ms)
        return changed[0] if changed else None

    async def put(self, store: Store, now_ms: int) -> bool:
        self.check_ours()
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
        self.check_ours()
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

    def check_ours(self) -> None:
        """Raise StoresReadOnly unless the table is solocron's own."""
        if not self._where._is_own:
            raise StoresReadOnly(
                f"stores are kept in the table {shown(self._where.name)}, which is not solocron's: "
                "create and change them there"
            )


def _columns(layout: Layout) -> Select[Any]:
    return select(*(column.label(name) for name, column in layout.columns.items()), *_stamp(layout))


def _stamp(layout: Layout) -> list[ColumnElement[Any]]:
    return [layout.table.c.updated_at] if layout.stamped else []


def _is(layout: Layout, is_open: bool) -> ColumnElement[bool]:
    """Whether a store is open, or closed: one of which the table does not know is neither."""
    return layout.columns["is_open"] == literal(layout.flag[is_open])


def _among(layout: Layout, store_ids: Collection[str]) -> ColumnElement[bool]:
    ids = [found for each in store_ids if (found := layout.to_id(each)) is not None]
    return layout.columns["id"].in_(ids)


def _past(layout: Layout, after: str | None) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    bound = layout.to_id(after)
    if bound is None:
        raise InvalidInput(f"after {shown(after)}: give the id of a store")
    return [layout.columns["id"] > bound]


def _short(layout: Layout) -> list[ColumnElement[bool]]:
    return [func.length(layout.columns["id"]) <= MAX_ID] if layout.long_ids else []


def _with_hours(layout: Layout, keys: Sequence[HoursKey]) -> Select[Any]:
    """Ids of stores with one of `keys`, in order.

    One key: the index has them in order. Several: sorting by an expression keeps the planner from
    walking all stores by id in the hope that LIMIT ends it soon. (SQLite finds OR in the index,
    but not a row value IN a list.)
    """
    wanted = or_(*(_has(layout, key) for key in keys))
    column = layout.columns["id"]
    order: ColumnElement[Any] = column
    if len(keys) > 1 and layout.id_type is str:
        order = column.concat("")
    elif len(keys) > 1 and layout.id_type is int:
        order = column + 0
    return select(column.label("id")).where(wanted, *_short(layout)).order_by(order)


def _has(layout: Layout, key: HoursKey) -> ColumnElement[bool]:
    same = []
    for name, value in zip(KEY, key, strict=True):
        column = layout.columns.get(name)
        if column is not None:
            is_it = column == value
            same.append(is_it if value or layout.stamped else or_(is_it, column.is_(None)))
    return and_(*same)


async def _change(
    connection: AsyncConnection, layout: Layout, due: Select[Any], is_open: bool, now_ms: int
) -> list[StoreName]:
    """Open or close the due stores.

    `due` decides: it locks each row, and judges anew one it had to wait for.
    """
    chosen = due.with_for_update().cte("due")
    ids, name = layout.columns["id"], layout.columns["name"]
    values = {layout.columns["is_open"]: layout.flag[is_open]}
    if layout.stamped:
        values[layout.table.c.updated_at] = now_ms
    change = update(layout.table).where(ids.in_(select(chosen.c.id))).values(values)
    change = change.returning(ids.label("id"), name.label("name"))
    return [_named(row) for row in await connection.execute(change)]


def _named(row: Row[Any]) -> StoreName:
    return StoreName(str(row.id), row.name or "")


def _values(store: Store, now_ms: int) -> dict[str, Any]:
    return {
        "id": store.id, "name": store.name, "timezone": store.timezone, "hours": store.hours,
        "country": store.country, "is_open": store.is_open, "updated_at": now_ms,
        "contact": store.contact,
    }  # fmt: skip


def _store(layout: Layout, row: Row[Any]) -> Store:
    given = row._mapping
    return Store(
        id=str(given["id"]),
        name=given["name"] or "",
        timezone=given.get("timezone", layout.timezone) or "",
        hours=given["hours"] or "",
        country=given.get("country", layout.country) or "",
        is_open=bool(given["is_open"]),
        updated_at=given.get("updated_at", 0),
        contact=given.get("contact") or "",
    )
