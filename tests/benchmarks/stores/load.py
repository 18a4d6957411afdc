"""Stores of which half are due, and the plain statements that a run is compared with."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncpg
from sqlalchemy.engine import make_url

from benchmarks.common import BenchError
from solocron.storage.engine import Database

_STARTS = 250
_MARGIN = 120  # minutes to the next change of state, at least: none comes while it is measured

_FILL = """
INSERT INTO stores (id, name, timezone, hours, country, is_open, updated_at)
SELECT 'store-' || lpad(n::text, 7, '0'), 'a store', 'UTC', keys.hours, '', TRUE, 0
FROM generate_series(0, $1::bigint - 1) n JOIN keys ON keys.number = n % $2::bigint ORDER BY n"""
_FILL_SQLITE = """
INSERT INTO stores (id, name, timezone, hours, country, is_open, updated_at)
VALUES (?, 'a store', 'UTC', ?, '', 1, 0)"""
_STATEMENTS = (
    """
UPDATE stores SET is_open = FALSE, updated_at = 1
FROM due WHERE stores.hours = due.hours AND stores.timezone = 'UTC' AND stores.country = ''
AND stores.is_open""",
    """
INSERT INTO store_states (store_id, notification_seq)
SELECT id, 1 FROM stores WHERE updated_at = 1
ON CONFLICT (store_id) DO UPDATE SET notification_seq = store_states.notification_seq + 1""",
    """
INSERT INTO notifications (store_id, seq, type, data, created_at)
SELECT id, notification_seq, 'store.closed',
'{"name":"' || name || '","reason":"hours-ended","tick":"2026-01-01T00:00:00.000Z"}', 1
FROM stores JOIN store_states ON store_id = id WHERE updated_at = 1""",
)
_PUBLISHED = (
    """
UPDATE notifications SET published_at = 1, feed = line.number
FROM (SELECT store_id, seq, row_number() OVER (ORDER BY created_at, store_id, seq) AS number
      FROM notifications) line
WHERE notifications.store_id = line.store_id AND notifications.seq = line.seq""",
    "UPDATE feed SET position = (SELECT count(*) FROM notifications)",
)


def hours(number: int, now: datetime) -> str:
    """Opening hours, each another text: those of even numbers have ended, the others go on."""
    start, more = (number // 2) % _STARTS, (number // 2) // _STARTS
    first, last = (
        (_MARGIN + start, 2 * _MARGIN + _STARTS + more) if number % 2 == 0
        else (-_MARGIN - start, _MARGIN + more)
    )  # fmt: skip
    times = (now + timedelta(minutes=each) for each in (first, last))
    return "Mo-Su " + "-".join(f"{each:%H:%M}" for each in times)


def all_hours(count: int) -> list[str]:
    """So many of them, now."""
    now = datetime.now(UTC)
    return [hours(number, now) for number in range(count)]


def name_of(number: int) -> str:
    """The id of a store; every other one is due."""
    return f"store-{number:07d}"


async def fill(url: str, stores: int, texts: Sequence[str]) -> None:
    """Put so many open stores, with these hours in turn, into a migrated database."""
    if make_url(url).get_backend_name() == "sqlite":
        await asyncio.to_thread(_fill_sqlite, url, stores, texts)
        return
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TEMP TABLE keys (number BIGINT PRIMARY KEY, hours TEXT)")
        await connection.copy_records_to_table("keys", records=enumerate(texts))
        await connection.execute(_FILL, stores, len(texts))
        await connection.execute("VACUUM ANALYZE stores")
    finally:
        await connection.close()


def _fill_sqlite(url: str, stores: int, texts: Sequence[str]) -> None:
    def rows() -> Iterator[tuple[str, str]]:
        return ((name_of(n), texts[n % len(texts)]) for n in range(stores))

    with sqlite3.connect(str(make_url(url).database)) as connection:
        connection.executemany(_FILL_SQLITE, rows())
    connection.execute("ANALYZE")
    connection.close()


class Plain(NamedTuple):
    """s until all that is due was closed and told of, and until that was noted as published."""

    closed_s: float
    noted_s: float


async def plain(url: str, stores: int, texts: Sequence[str]) -> Plain:
    """How long the statements take that do to what `fill` made as a run does: a transaction that
    closes and tells of it, by somebody who knows which hours are due, and one that notes it as
    published, by somebody who published nothing. Raises BenchError."""
    due = [(text,) for text in texts[::2]]
    if make_url(url).get_backend_name() == "sqlite":
        return await asyncio.to_thread(_plain_sqlite, url, stores, due)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TEMP TABLE due (hours TEXT)")
        await connection.copy_records_to_table("due", records=due)
        await connection.execute("ANALYZE due")
        began = time.perf_counter()
        async with connection.transaction():
            done = [await connection.execute(each) for each in _STATEMENTS]
        closed = time.perf_counter()
        async with connection.transaction():
            for each in _PUBLISHED:
                await connection.execute(each)
        noted = time.perf_counter()
        _check(stores, [int(each.split()[-1]) for each in done])
        return Plain(closed - began, noted - began)
    finally:
        await connection.close()


def _plain_sqlite(url: str, stores: int, due: list[tuple[str]]) -> Plain:
    connection = sqlite3.connect(str(make_url(url).database))
    connection.execute("PRAGMA synchronous=NORMAL")  # as the service has it
    connection.execute("CREATE TEMP TABLE due (hours TEXT)")
    connection.executemany("INSERT INTO due VALUES (?)", due)
    connection.commit()
    began = time.perf_counter()
    with connection:
        done = [connection.execute(each).rowcount for each in _STATEMENTS]
    closed = time.perf_counter()
    with connection:
        for each in _PUBLISHED:
            connection.execute(each)
    noted = time.perf_counter()
    connection.close()
    _check(stores, done)
    return Plain(closed - began, noted - began)


def _check(stores: int, changed: Sequence[int]) -> None:
    if set(changed) != {stores // 2}:
        raise BenchError(f"the plain statements changed {changed} rows of {stores} stores")


async def migrated(url: str) -> None:
    """Make the tables."""
    database = Database(url)
    await database.migrate()
    await database.close()
