"""What the statements on a table of stores are made of. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, and_, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from solocron.errors import InvalidInput
from solocron.storage.listed import listed
from solocron.stores.columns import KEY, MAX_ID, Layout
from solocron.stores.hours import HoursKey, shown


def is_now(layout: Layout, is_open: bool) -> ColumnElement[bool]:
    """Whether a store is open, or closed: one of which the table does not know is neither."""
    return layout.columns["is_open"] == literal(layout.flag[is_open])


def among(layout: Layout, store_ids: Collection[str]) -> ColumnElement[bool]:
    """The stores with these ids."""
    ids = [found for each in store_ids if (found := layout.to_id(each)) is not None]
    return layout.columns["id"].in_(ids)


def past(layout: Layout, after: str | None) -> list[ColumnElement[bool]]:
    """Those past an id (None: all). Raises InvalidInput for what is none."""
    if after is None:
        return []
    bound = layout.to_id(after)
    if bound is None:
        raise InvalidInput(f"after {shown(after)}: give the id of a store")
    return [layout.columns["id"] > bound]


def short(layout: Layout) -> list[ColumnElement[bool]]:
    """Those whose id a store can have."""
    return [func.length(layout.columns["id"]) <= MAX_ID] if layout.long_ids else []


def with_hours(layout: Layout, keys: Sequence[HoursKey]) -> Select[Any]:
    """Ids of stores with one of `keys`, in order. (SQLite finds OR in the index, but not a row
    value IN a list.)"""
    wanted = or_(*(_has(layout, key) for key in keys))
    column = layout.columns["id"]
    order = sorted_by_id(layout) if len(keys) > 1 else column  # of one the index has them in order
    return select(column.label("id")).where(wanted, *short(layout)).order_by(order)


def sorted_by_id(layout: Layout) -> ColumnElement[Any]:
    """In the order of ids, by an expression: it keeps the planner from walking all stores by id in
    the hope that LIMIT ends it soon."""
    column = layout.columns["id"]
    if layout.id_type is str:
        return column.concat("")
    return column + 0 if layout.id_type is int else column


def given_keys(
    connection: AsyncConnection, layout: Layout, name: str, type_: TypeEngine[Any],
    pairs: Iterable[tuple[Any, HoursKey]],
) -> FromClause:  # fmt: skip
    """Pairs of a value and a key as a table: the column `name`, and those of a key that the table
    of stores has, too."""
    columns = {each: layout.columns[each].type for each in KEY if each in layout.columns}
    rows = [(value, *(getattr(key, each) for each in columns)) for value, key in pairs]
    return listed(connection, rows, {name: type_, **columns})


def has_given(layout: Layout, given: FromClause) -> ColumnElement[bool]:
    """Whether a store has the hours, zone and country of a row of `given`."""
    same = []
    for name in KEY:
        column = layout.columns.get(name)
        if column is not None:
            is_it = column == given.c[name]
            nothing = and_(given.c[name] == "", column.is_(None))
            same.append(is_it if name == "hours" or layout.stamped else or_(is_it, nothing))
    return and_(*same)


def _has(layout: Layout, key: HoursKey) -> ColumnElement[bool]:
    same = []
    for name, value in zip(KEY, key, strict=True):
        column = layout.columns.get(name)
        if column is not None:
            is_it = column == value
            same.append(is_it if value or layout.stamped else or_(is_it, column.is_(None)))
    return and_(*same)
