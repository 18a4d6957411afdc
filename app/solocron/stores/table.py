"""Stores in a table of the database: solocron's own, or one the host has already.

What changes stores is a conditional UPDATE of a bounded number of rows. Whoever locks several rows
does so in the order of their ids, so no two transactions wait for each other.

The index `stores_by_hours` begins with the hours, not with `is_open`: how many stores are open
turns over twice a day, and a planner that believes yesterday's count would walk all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from solocron.storage.engine import Database
from solocron.storage.outbox import CHUNK
from solocron.storage.tables import stores
from solocron.stores.clauses import (
    among,
    given_keys,
    has_given,
    is_now,
    past,
    short,
    sorted_by_id,
    with_hours,
)
from solocron.stores.columns import (
    FIELDS,
    KEY,
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
_PART = 1000  # rows that are read at a time, so that the loop is not held


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
        found = await connection.execute(_columns(layout).where(among(layout, store_ids)))
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
            query = query.where(*past(layout, after), *short(layout))
            if is_open is not None:
                query = query.where(is_now(layout, is_open))
            if ids is not None:
                query = query.where(among(layout, ids))
            return [_store(layout, row) for row in await connection.execute(query)]

    async def hours_keys(self, is_open: bool) -> dict[HoursKey, int]:
        async with self._database.connect() as connection:
            layout = await self._layout(connection)
            names = [each for each in KEY if each in layout.columns]
            columns = [layout.columns[each] for each in names]
            query = select(*columns, func.count().label("count_")).where(
                is_now(layout, is_open), layout.columns["hours"].is_not(None), *short(layout)
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
        due = with_hours(layout, keys).where(is_now(layout, True)).limit(limit)
        return await _changed(connection, _change(layout, due, False, now_ms))

    async def look_ahead(
        self, keys: Sequence[HoursKey], *, after: str | None, limit: int
    ) -> dict[str, HoursKey]:
        found: dict[str, HoursKey] = {}
        async with self._database.connect() as connection:
            layout = await self._layout(connection)
            given = given_keys(connection, layout, "number", Integer(), enumerate(keys))
            query = (
                select(layout.columns["id"], given.c.number)
                .where(
                    is_now(layout, True),
                    has_given(layout, given),
                    *past(layout, after),
                    *short(layout),
                )
                .order_by(sorted_by_id(layout))
                .limit(limit)
            )
            async with connection.stream(query.execution_options(yield_per=_PART)) as rows:
                async for part in rows.partitions():
                    found.update((str(id_), keys[number]) for id_, number in part)
        return found

    async def closing(
        self, connection: AsyncConnection, due: Mapping[str, HoursKey], *, now_ms: int
    ) -> ReturningUpdate[Any]:
        layout = await self._layout(connection)
        ids, rows = layout.columns["id"], [(layout.to_id(each), key) for each, key in due.items()]
        given = given_keys(connection, layout, "id", ids.type, rows)
        these = (
            select(ids.label("id"))
            .where(ids == given.c.id, has_given(layout, given), is_now(layout, True))
            .order_by(ids)
        )
        return _change(layout, these, False, now_ms)

    async def closed(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, after: str | None,
        limit: int,
    ) -> list[StoreName]:  # fmt: skip
        layout = await self._layout(connection)
        due = with_hours(layout, keys).add_columns(layout.columns["name"].label("name"))
        due = due.where(is_now(layout, False), *past(layout, after)).limit(limit)
        return _named((await connection.execute(due.with_for_update())).all())

    async def set_open(
        self, connection: AsyncConnection, store_id: str, is_open: bool, now_ms: int
    ) -> StoreName | None:
        layout = await self._layout(connection)
        due = select(layout.columns["id"].label("id"))
        due = due.where(among(layout, [store_id]), is_now(layout, not is_open))
        changed = await _changed(connection, _change(layout, due, is_open, now_ms))
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


def _change(layout: Layout, due: Select[Any], is_open: bool, now_ms: int) -> ReturningUpdate[Any]:
    """Opens or closes the due stores.

    `due` decides: it locks each row, and judges anew one it had to wait for.
    """
    chosen = due.with_for_update(of=layout.table).cte("due")
    ids, name = layout.columns["id"], layout.columns["name"]
    values = {layout.columns["is_open"]: layout.flag[is_open]}
    if layout.stamped:
        values[layout.table.c.updated_at] = now_ms
    change = update(layout.table).where(ids.in_(select(chosen.c.id))).values(values)
    return change.returning(ids.label("id"), name.label("name"))


async def _changed(connection: AsyncConnection, change: ReturningUpdate[Any]) -> list[StoreName]:
    return _named((await connection.execute(change)).all())


def _named(rows: Iterable[Any]) -> list[StoreName]:
    return [StoreName(str(id_), name or "") for id_, name in rows]


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
