"""The counters of each store: its newest seq, and the newest tick it was reminded of.

They stand in a table of their own, so that a store can be kept anywhere. Whoever takes the next
seq has that store's row locked until its transaction ends: a store's seqs are gap-free, and their
order is commit order. Several are taken in the order of the stores' ids, so that no two
transactions wait for each other; who also changes the stores themselves does that first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import CTE, BigInteger, Insert, String, cast, literal, or_, select, true
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage.listed import listed
from solocron.storage.tables import store_states


async def next_seqs(connection: AsyncConnection, store_ids: Collection[str]) -> dict[str, int]:
    """Take the next seq of each of these stores, in the caller's transaction."""
    if not store_ids:
        return {}
    return await _taken(connection, _counted(_firsts(connection, store_ids)))


async def next_seqs_unreminded(
    connection: AsyncConnection, store_ids: Collection[str], tick: int
) -> dict[str, int]:
    """As `next_seqs`, of those stores that neither this tick nor a later one reminded yet."""
    if not store_ids:
        return {}
    last = store_states.c.last_reminded_tick
    upsert = _firsts(connection, store_ids, tick).on_conflict_do_update(
        index_elements=["store_id"],
        set_={
            "notification_seq": store_states.c.notification_seq + 1,
            "last_reminded_tick": tick,
        },
        where=or_(last.is_(None), last < tick),
    )
    return await _taken(connection, upsert)


def taken_by(changed: CTE) -> CTE:
    """The next seq of each store that `changed` returns the `id` of: part of a statement that only
    PostgreSQL takes."""
    ids = cast(changed.c.id, String())
    values = select(ids, literal(1, BigInteger())).order_by(ids.collate("C"))  # as Python sorts
    upsert = _counted(
        postgres_insert(store_states).from_select(["store_id", "notification_seq"], values)
    )
    returning = upsert.returning(store_states.c.store_id, store_states.c.notification_seq)
    taken: CTE = returning.cte("taken")
    return taken


async def newest_seqs(connection: AsyncConnection, store_ids: Collection[str]) -> dict[str, int]:
    """The newest seq of those of the stores that have a notification."""
    columns = select(store_states.c.store_id, store_states.c.notification_seq)
    rows = await connection.execute(columns.where(store_states.c.store_id.in_(store_ids)))
    return {row.store_id: row.notification_seq for row in rows}


def _firsts(
    connection: AsyncConnection, store_ids: Collection[str], tick: int | None = None
) -> Any:
    """An INSERT of the first seq of each store, in the order of their ids."""
    given = listed(connection, [(each,) for each in sorted(store_ids)], {"store_id": String()})
    values = (given.c.store_id, literal(1, BigInteger()), literal(tick, BigInteger()))
    insert = postgres_insert if connection.dialect.name == "postgresql" else sqlite_insert
    return insert(store_states).from_select(
        ["store_id", "notification_seq", "last_reminded_tick"],
        select(*values).where(true()),  # SQLite takes ON CONFLICT for a join's ON otherwise
    )


def _counted(insert: Any) -> Any:
    return insert.on_conflict_do_update(
        index_elements=["store_id"],
        set_={"notification_seq": store_states.c.notification_seq + 1},
    )


async def _taken(connection: AsyncConnection, upsert: Insert) -> dict[str, int]:
    returning = upsert.returning(store_states.c.store_id, store_states.c.notification_seq)
    return {store_id: seq for store_id, seq in (await connection.execute(returning)).all()}
