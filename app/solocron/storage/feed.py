"""The feed: every notification of every store in one line, for those who watch them all.

A notification gets its place, its `feed` number, after it was committed: whoever holds the lock on
the one row of the table `feed` numbers what has no number yet. So the numbers are gap-free and,
as with a store's `seq`, a reader that has seen `n` misses nothing as long as it next sees `n + 1`.
A store's notifications keep their order, because those of one store are always numbered in turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Row,
    Select,
    String,
    Table,
    bindparam,
    case,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from solocron.storage.engine import Database
from solocron.storage.listed import listed, plan_anew
from solocron.storage.tables import feed, notifications

EVERY = "*"  # stands for all stores, where a store's id could; no store has such an id
PLACE: Mapping[str, TypeEngine[Any]] = {"store_id": String(), "seq": BigInteger()}  # for `listed`
_NUMBERED: Mapping[str, TypeEngine[Any]] = {**PLACE, "number": BigInteger()}
_BATCH = 1000


class _Place(NamedTuple):
    created_at: int
    store_id: str
    seq: int


class Feed:
    """Numbers and reads the feed. Every method may raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def number(self, most: int | None = None) -> int:
        """Number what was committed before, at most `most` of it, and return the newest number
        (0: there is none yet)."""
        unnumbered = select(notifications.c.seq).where(notifications.c.feed.is_(None)).limit(1)
        newest = select(feed.c.position)
        while True:
            async with self._database.connect() as connection:
                waiting = (await connection.execute(unnumbered)).first() is not None
                if not waiting:
                    return int((await connection.execute(newest)).scalar_one())
            async with self._database.begin() as connection:
                number, count = await _number_batch(connection, most or _BATCH)
            if most or count < _BATCH:  # commits may go on for ever
                return number

    async def oldest(self) -> int | None:
        """The oldest number still kept; None when nothing is."""
        query = select(func.min(notifications.c.feed))
        async with self._database.connect() as connection:
            found: int | None = (await connection.execute(query)).scalar_one()
            return found

    async def since(self, last: int, limit: int) -> Sequence[Row[tuple[object, ...]]]:
        """What came after number `last`, in order, at most `limit` rows of `notifications`."""
        query = (
            select(notifications)
            .where(notifications.c.feed > last)
            .order_by(notifications.c.feed)
            .limit(limit)
        )
        async with self._database.connect() as connection:
            return (await connection.execute(query)).all()


async def _number_batch(connection: AsyncConnection, most: int) -> tuple[int, int]:
    """The newest number, and how many are new."""
    taken = await lock_feed(connection)
    numbers = await _next_numbers(connection, taken, _unnumbered().limit(most))
    if not numbers:
        return taken, 0
    given = listed(connection, [(*each, n) for each, n in numbers.items()], _NUMBERED)
    number = update(notifications).where(_is_same(given)).values(feed=given.c.number)
    await connection.execute(number)
    return taken + len(numbers), len(numbers)


async def mark_published(
    connection: AsyncConnection, places: Collection[tuple[str, int]], now_ms: int
) -> None:
    """Note that the notifications of these stores and seqs were published. What has no number yet
    of these stores, up to them, is given one by the same write: a row is written once, not twice.
    """
    taken = await lock_feed(connection)
    newest: dict[str, int] = {}
    for store_id, seq in places:
        newest[store_id] = max(seq, newest.get(store_id, 0))
    upto = listed(connection, list(newest.items()), PLACE)
    theirs = (notifications.c.store_id == upto.c.store_id) & (notifications.c.seq <= upto.c.seq)
    numbers = await _next_numbers(connection, taken, _unnumbered().where(theirs).limit(_BATCH))
    marked = set(places)
    rows = [
        (*each, numbers.get(each), each in marked) for each in {**dict.fromkeys(places), **numbers}
    ]
    given = listed(connection, rows, {**_NUMBERED, "marked": Boolean()})
    published_at = case((given.c.marked, now_ms), else_=notifications.c.published_at)
    await connection.execute(
        update(notifications)
        .where(_is_same(given))
        .values(feed=func.coalesce(given.c.number, notifications.c.feed), published_at=published_at)
    )


def _unnumbered() -> Select[Any]:
    """A store's in order, so that of a part of them, too, none is left out."""
    columns = notifications.c.created_at, notifications.c.store_id, notifications.c.seq
    query = select(*columns).where(notifications.c.feed.is_(None))
    return query.order_by(notifications.c.store_id, notifications.c.seq)


async def _next_numbers(
    connection: AsyncConnection, taken: int, unnumbered: Select[Any]
) -> dict[tuple[str, int], int]:
    """Take the next numbers for these notifications, which are not written yet."""
    places = in_line([_Place(*row) for row in (await connection.execute(unnumbered)).all()])
    if places:
        await connection.execute(update(feed).values(position=taken + len(places)))
    return {(each.store_id, each.seq): n for n, each in enumerate(places, taken + 1)}


def _is_same(given: FromClause) -> ColumnElement[bool]:
    of_store = notifications.c.store_id == given.c.store_id
    return of_store & (notifications.c.seq == given.c.seq)


async def lock_feed(connection: AsyncConnection) -> int:
    """The newest number. Until the transaction ends nobody else numbers, or marks what was
    published: two that change the same rows in different orders would wait for each other."""
    await plan_anew(connection)
    return int((await connection.execute(select(feed.c.position).with_for_update())).scalar_one())


class _Keyed(Protocol):
    @property
    def store_id(self) -> str: ...

    @property
    def seq(self) -> int: ...


def has_key(table: Table) -> ColumnElement[bool]:
    """The rows of one notification, whose key is handed over as one of `keys`: a statement for
    each key, all sent in one call. SQLite looks no list of keys up in the index: it reads the
    whole table."""
    return (table.c.store_id == bindparam("of_store")) & (table.c.seq == bindparam("of_seq"))


def keys(rows: Iterable[_Keyed]) -> list[dict[str, Any]]:
    """The parameters of `has_key` for each of the rows."""
    return [{"of_store": each.store_id, "of_seq": each.seq} for each in rows]


def in_line(places: Sequence[_Place]) -> list[_Place]:
    """By time, except that a store's stay in the order of their seq, whatever the clocks of the
    servers that wrote them say. `places` are sorted by store and seq."""
    latest: defaultdict[str, int] = defaultdict(int)
    keys = {}
    for each in places:
        latest[each.store_id] = max(latest[each.store_id], each.created_at)
        keys[each] = latest[each.store_id], each.store_id, each.seq
    return sorted(places, key=keys.__getitem__)
