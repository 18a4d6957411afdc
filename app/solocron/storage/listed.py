"""Rows of values as a table in a statement: however many they are, they go to the database in one
piece, by a statement whose text is always the same, and are worked on there as a set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, FromClause, bindparam, column, func, select, text, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import String, TypeEngine


def listed(
    connection: AsyncConnection, rows: Sequence[Sequence[Any]], *, name: str = "listed",
    **types: TypeEngine[Any],
) -> FromClause:  # fmt: skip
    """The rows, of which there is one at least, as the table `name` with columns of these types."""
    if connection.dialect.name == "postgresql":
        columns = zip(types.values(), zip(*rows, strict=True), strict=True)
        arrays = [bindparam(None, list(values), ARRAY(type_)) for type_, values in columns]
        made = func.unnest(*arrays).table_valued(*(column(*each) for each in types.items()))
        return made.render_derived(name=name)
    each = func.json_each(bindparam(None, json.dumps(rows), String())).table_valued("value")
    parts = [
        type_coerce(func.json_extract(each.c.value, f"$[{number}]"), type_).label(column_)
        for number, (column_, type_) in enumerate(types.items())
    ]
    return select(*parts).subquery(name)


async def plan_anew(connection: AsyncConnection) -> None:
    """Have each statement of this transaction planned when it is sent. PostgreSQL keeps the plan
    of one that comes again and again: made while the table was short, it would go on reading the
    whole of it."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))
