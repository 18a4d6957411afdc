"""Rows of values as a table in a statement: however many they are, they go to the database in one
piece, by a statement whose text is always the same, and are worked on there as a set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BindParameter,
    ColumnElement,
    FromClause,
    Text,
    bindparam,
    cast,
    func,
    select,
    text,
)  # fmt: skip
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine


def _plain(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be handed to the database")


as_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_plain).encode


def listed(
    connection: AsyncConnection, rows: Sequence[Sequence[Any]], types: Mapping[str, TypeEngine[Any]]
) -> FromClause:
    """The rows, of which there is one at least, as a table with columns of these types. A dict in
    a column of text is JSON there."""
    return table_of(connection.dialect.name, bindparam(None, as_json(rows), Text()), types)


def table_of(
    dialect: str, given: BindParameter[str], types: Mapping[str, TypeEngine[Any]]
) -> FromClause:
    """The same of rows that are handed over as a parameter, which `as_json` made of them."""
    parts: list[ColumnElement[Any]]
    if dialect == "postgresql":
        each = func.json_array_elements(cast(given, JSON)).table_valued("value").render_derived()
        parts = [each.c.value.op("->>")(number) for number in range(len(types))]
    else:
        each = func.json_each(given).table_valued("value")
        parts = [func.json_extract(each.c.value, f"$[{number}]") for number in range(len(types))]
    named = zip(parts, types.items(), strict=True)
    return select(*(cast(part, type_).label(name) for part, (name, type_) in named)).subquery(
        "listed"
    )


async def plan_anew(connection: AsyncConnection) -> None:
    """Have each statement of this transaction planned when it is sent. PostgreSQL keeps the plan
    of one that comes again and again: made while the table was short, it would go on reading the
    whole of it."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))
