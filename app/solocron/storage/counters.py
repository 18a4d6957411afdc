"""The counters of each store: its newest seq, and the newest tick it was reminded of.

They stand in a table of their own, so that a store can be kept anywhere. Whoever takes the next
seq has that store's row locked until its transaction ends: a store's seqs are gap-free, and their
order is commit order. Several are taken in the order of the stores' ids, so that no two
transactions wait for each other; who also changes the stores themselves does that first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Insert, or_, select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage.tables import store_states


async def next_seqs(connection: AsyncConnection, store_ids: Collection[str]) -> dict[str, int]:
    """Take the next seq of each of these stores, in the caller's transaction."""
    insert = _insert(connection)
    upsert = insert.on_conflict_do_update(
        index_elements=["store_id"],
        set_={"notification_seq": store_states.c.notification_seq + 1},
    )
    return await _take(connection, upsert, [{"store_id": each} for each in sorted(store_ids)])


async def next_seqs_unreminded(
    connection: AsyncConnection, store_ids: Collection[str], tick: int
) -> dict[str, int]:
    """As `next_seqs`, of those stores that neither this tick nor a later one reminded yet."""
    insert = _insert(connection)
    last = store_states.c.last_reminded_tick
    upsert = insert.on_conflict_do_update(
        index_elements=["store_id"],
        set_={
            "notification_seq": store_states.c.notification_seq + 1,
            "last_reminded_tick": insert.excluded.last_reminded_tick,
        },
        where=or_(last.is_(None), last < insert.excluded.last_reminded_tick),
    )
    rows = [{"store_id": each, "last_reminded_tick": tick} for each in sorted(store_ids)]
    return await _take(connection, upsert, rows)


async def newest_seqs(connection: AsyncConnection, store_ids: Collection[str]) -> dict[str, int]:
    """The newest seq of those of the stores that have a notification."""
    columns = select(store_states.c.store_id, store_states.c.notification_seq)
    rows = await connection.execute(columns.where(store_states.c.store_id.in_(store_ids)))
    return {row.store_id: row.notification_seq for row in rows}


def _insert(connection: AsyncConnection) -> Any:
    postgres = connection.dialect.name == "postgresql"
    return (postgres_insert if postgres else sqlite_insert)(store_states)


async def _take(
    connection: AsyncConnection, upsert: Insert, rows: list[dict[str, Any]]
) -> dict[str, int]:
    if not rows:
        return {}
    taken = await connection.execute(
        upsert.returning(store_states.c.store_id, store_states.c.notification_seq),
        [{**each, "notification_seq": 1} for each in rows],
    )
    return {row.store_id: row.notification_seq for row in taken}
