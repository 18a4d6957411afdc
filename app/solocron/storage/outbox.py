"""The outbox: notifications as rows, written in the transaction of the change they tell of.

A store's `seq` is gap-free and its order is commit order (see `counters`): a reader that has seen
`n` misses nothing as long as it next sees `n + 1`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    Row,
    String,
    Text,
    and_,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    values,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from solocron.storage.counters import newest_seqs, taken_by
from solocron.storage.engine import Database, database_now
from solocron.storage.feed import EVERY, PLACE, Feed, mark_published
from solocron.storage.listed import as_json, listed
from solocron.storage.tables import deliveries, notifications
from solocron.together import Together

CHUNK = 500  # stores per statement: 3 parameters each, well under either database's limit
_READERS = 6  # of the database's 10 connections
_FEW, _FEW_ROWS = 100, 20  # spans of stores that are read for several readers, and rows of each

_T = TypeVar("_T")

Existing = Callable[[Collection[str]], Awaitable[Collection[str]]]


@dataclass(frozen=True)
class Notification:
    """One row: the `seq`-th notification of a store. `created_at` is UTC epoch ms; `feed` is its
    number among those of all stores, where it was read as one of them."""

    store_id: str
    seq: int
    type: str
    data: Mapping[str, Any]
    created_at: int
    feed: int | None = None

    @property
    def place(self) -> tuple[str, int]:
        """What it was read as: the store's id and the seq, or EVERY and the number in the feed."""
        return (self.store_id, self.seq) if self.feed is None else (EVERY, self.feed)


class _Span(NamedTuple):
    """The notifications of a store after `last`, up to `head`."""

    store_id: str
    last: int
    head: int


async def append(
    connection: AsyncConnection, rows: Sequence[Notification], channels: Sequence[str] = ()
) -> None:
    """Insert rows whose `seq` was taken in this same transaction, and with them what is to be
    delivered on each of `channels`: no crash can leave one without the other."""
    if not rows:
        return
    given = listed(
        connection,
        [(each.store_id, each.seq, each.type, each.data, each.created_at) for each in rows],
        {**PLACE, "type": String(), "data": Text(), "created_at": BigInteger()},
    )
    await connection.execute(
        insert(notifications).from_select([each.name for each in given.c], select(given))
    )
    await _deliver(connection, rows, channels)


async def append_with(
    connection: AsyncConnection, change: ReturningUpdate[Any], type_: str,
    data: Mapping[str, Any], created_at: int, channels: Sequence[str] = (),
) -> list[Notification]:  # fmt: skip
    """Have `change` done, an UPDATE of stores that returns `id` and `name`, and write with it what
    is told of each: its name and `data`. All is one statement, in which nothing waits for us; only
    PostgreSQL can do that."""
    changed = change.cte("changed")
    taken = taken_by(changed)
    # A full join, because the planner cannot know how many there are, and never loops over that.
    both = taken.join(changed, cast(changed.c.id, String()) == taken.c.store_id, full=True)
    named = func.to_json(func.coalesce(cast(changed.c.name, Text()), ""))
    values = select(
        taken.c.store_id, taken.c.notification_seq, literal(type_),
        func.concat('{"name":', named, "," + as_json(data)[1:]), literal(created_at, BigInteger()),
    ).select_from(both)  # fmt: skip
    told = insert(notifications).from_select(
        ["store_id", "seq", "type", "data", "created_at"], values
    )
    told = told.returning(notifications.c.store_id, notifications.c.seq, notifications.c.data)
    rows = [
        Notification(store_id, seq, type_, json.loads(text), created_at)
        for store_id, seq, text in (await connection.execute(told)).all()
    ]
    await _deliver(connection, rows, channels)
    return rows


async def _deliver(
    connection: AsyncConnection, rows: Sequence[Notification], channels: Sequence[str]
) -> None:
    pairs = [(each.store_id, each.seq, channel) for each in rows for channel in channels]
    if pairs:
        given = listed(connection, pairs, {**PLACE, "channel": String()})
        pending = select(given, literal("pending", String()), database_now())
        names = [*(each.name for each in given.c), "state", "due_at"]
        await connection.execute(insert(deliveries).from_select(names, pending))


class Outbox:
    """Reads the table, of stores or, by the id EVERY, of the feed. Every method may raise
    StorageUnavailable. What many ask at the same time is read for all of them together.

    `existing` says which of some stores exist that have no notification yet.
    """

    def __init__(self, database: Database, existing: Existing | None = None) -> None:
        self._database = database
        self._existing = existing
        self._feed = Feed(database)
        # When a server dies its clients come by the hundred: they may not have all connections to
        # the database, which jobs and the relay need too.
        self._turns = turns = asyncio.Semaphore(_READERS)
        self._heads = Together(self._read_heads, most=CHUNK, turns=turns)
        self._oldest = Together(self._read_oldest, most=CHUNK, turns=turns)
        self._few = Together(self._read_few, most=_FEW, turns=turns)

    async def heads(self, store_ids: Sequence[str]) -> dict[str, int]:
        """The newest `seq` of each store that exists (0: it has no notification yet)."""
        found = {EVERY: await self._feed.number()} if EVERY in store_ids else {}
        return found | await self._heads(store_ids)

    async def _read_heads(self, store_ids: Collection[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        async with self._database.connect() as connection:
            for chunk in _chunks(list(store_ids)):
                found |= await newest_seqs(connection, chunk)
        untold = [each for each in store_ids if each not in found]
        if untold and self._existing is not None:
            found |= dict.fromkeys(await self._existing(untold), 0)
        return found

    async def oldest(self, store_ids: Sequence[str]) -> dict[str, int]:
        """The oldest `seq` still kept of each store that has any."""
        found: dict[str, int] = {}
        if EVERY in store_ids and (number := await self._feed.oldest()) is not None:
            found[EVERY] = number
        return found | await self._oldest(store_ids)

    async def _read_oldest(self, store_ids: Collection[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        async with self._database.connect() as connection:
            for chunk in _chunks(list(store_ids)):
                query = (
                    select(notifications.c.store_id, func.min(notifications.c.seq).label("seq"))
                    .where(notifications.c.store_id.in_(chunk))
                    .group_by(notifications.c.store_id)
                )
                rows = await connection.execute(query)
                found.update((row.store_id, row.seq) for row in rows)
        return found

    async def since(
        self, last: Mapping[str, int], limit: int
    ) -> tuple[dict[str, int], list[Notification]]:
        """The newest `seq` of each store, read first, and then what came after its `last`: in
        order per store, at most `limit` rows of stores and as many of the feed. At most `CHUNK`
        stores."""
        heads, rows = await self._of_stores(
            {each: seq for each, seq in last.items() if each != EVERY}, limit
        )
        if EVERY in last:
            heads[EVERY] = await self._feed.number(limit)  # a full page: the reader asks again
            numbered = await self._feed.since(last[EVERY], limit)
            rows += [notification(row, feed=row.feed) for row in numbered]
        return heads, rows

    async def _of_stores(
        self, last: Mapping[str, int], limit: int
    ) -> tuple[dict[str, int], list[Notification]]:
        heads = await self._heads(last)
        spans = [_Span(each, last[each], head) for each, head in heads.items() if last[each] < head]
        if sum(head - seq for _, seq, head in spans) <= min(_FEW_ROWS, limit - 1):
            found = await self._few(spans)
            return heads, [row for each in sorted(found) for row in found[each]]
        async with self._turns, self._database.connect() as connection:
            return heads, await _rows(connection, spans, limit)

    async def _read_few(self, spans: Collection[_Span]) -> dict[_Span, list[Notification]]:
        """The rows of each span. Where stores are in several, those of all of them are read."""
        widest: dict[str, _Span] = {}
        for each in spans:
            other = widest.get(each.store_id, each)
            last, head = min(each.last, other.last), max(each.head, other.head)
            widest[each.store_id] = _Span(each.store_id, last, head)
        by_store: dict[str, list[Notification]] = {each: [] for each in widest}
        async with self._database.connect() as connection:
            for row in await _rows(connection, list(widest.values())):
                by_store[row.store_id].append(row)
        return {
            each: [row for row in by_store[each.store_id] if each.last < row.seq <= each.head]
            for each in spans
        }

    async def number(self) -> None:
        """Give what was committed its number in the feed."""
        await self._feed.number()

    async def unpublished(self, before_ms: int, limit: int) -> list[Notification]:
        """Rows no relay has published although created before `before_ms`, oldest first."""
        query = (
            select(notifications)
            .where(notifications.c.published_at.is_(None), notifications.c.created_at < before_ms)
            .order_by(notifications.c.created_at, notifications.c.store_id, notifications.c.seq)
            .limit(limit)
        )
        async with self._database.connect() as connection:
            return [notification(row) for row in await connection.execute(query)]

    async def unpublished_among(self, places: Collection[tuple[str, int]]) -> list[Notification]:
        """Those of the notifications (store and seq) that are there and that no relay has
        published, in order of each store."""
        found: list[Notification] = []
        async with self._database.connect() as connection:
            for chunk in _chunks(sorted(places)):
                spans = [_Span(store_id, seq - 1, seq) for store_id, seq in chunk]
                found += await _rows(connection, spans, unpublished=True)
        return found

    async def mark_published(self, rows: Sequence[Notification], now_ms: int) -> None:
        """Note that every server watching these stores has been told."""
        async with self._database.begin() as connection:
            places = [(each.store_id, each.seq) for each in rows]
            await mark_published(connection, places, now_ms)


async def _rows(
    connection: AsyncConnection, spans: Sequence[_Span], limit: int | None = None, *,
    unpublished: bool = False,
) -> list[Notification]:  # fmt: skip
    if not spans:
        return []
    wanted = (
        values(
            column("id", String), column("last", BigInteger), column("head", BigInteger),
            name="wanted",
        )
        .data(spans)
        .cte("wanted")
    )  # fmt: skip
    inside = and_(
        notifications.c.store_id == wanted.c.id,
        notifications.c.seq > wanted.c.last,
        notifications.c.seq <= wanted.c.head,
    )
    query = (
        select(notifications)
        .join(wanted, inside)
        .order_by(notifications.c.store_id, notifications.c.seq)
        .limit(limit)
    )
    if unpublished:
        query = query.where(notifications.c.published_at.is_(None))
    return [notification(row) for row in await connection.execute(query)]


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def notification(row: Row[Any], feed: int | None = None) -> Notification:
    """The notification a row of the table is; `feed`, if it was read as one of the feed."""
    data = json.loads(row.data)
    return Notification(row.store_id, row.seq, row.type, data, row.created_at, feed)
