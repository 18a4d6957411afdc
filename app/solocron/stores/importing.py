"""Stores from a file: check all of it first, then write it in batches.

Two passes over the file keep memory small (the ids are kept, to find duplicates). Written again,
the same file changes nothing; a store that exists keeps whether it is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from solocron.clock import Clock
from solocron.errors import InvalidInput
from solocron.storage.engine import Database
from solocron.stores.hours import check_hours, shown
from solocron.stores.model import InvalidField, Store, parse_store
from solocron.stores.reading import MAX_ROWS, BadRow, RawRow, raw_rows
from solocron.stores.repository import StoreRepository, StoresReadOnly
from solocron.stores.table import StoreTable, TableStores

MAX_BAD_KEPT = 1000
_BATCH = 500
_DISTINCT_HOURS = 10_000  # remembered as valid while a file is read

Row = Store | BadRow


class Advance(Protocol):
    """Hears of progress: `rows` more are done, of `total`."""

    def __call__(self, rows: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class ImportReport:
    """What became of a file: rows read, stores written, and the bad rows.

    `bad` holds the first 1,000 of them; `bad_count` counts all.
    """

    read: int
    imported: int
    bad: tuple[BadRow, ...]
    bad_count: int


def read(path: Path) -> Iterator[Row]:
    """The stores of a CSV, JSON or JSON Lines file, one at a time; a wrong row is a BadRow.

    Raises InvalidInput when the file as a whole cannot be read.
    """
    seen: set[str] = set()
    check = lru_cache(_DISTINCT_HOURS)(check_hours)
    for number, raw in enumerate(raw_rows(path), 1):
        if number > MAX_ROWS:
            raise InvalidInput(f"file {shown(str(path))} has over {MAX_ROWS:,} rows: split it")
        yield raw if isinstance(raw, BadRow) else _row(raw, seen, check)


def _row(raw: RawRow, seen: set[str], check: Callable[[str, str, str], None]) -> Row:
    try:
        store = parse_store(raw.fields, check)
    except InvalidField as error:
        return BadRow(raw.line, error.field, error.reason)
    if store.id in seen:
        reason = f"id {shown(store.id)} stands in this file more than once: keep one row"
        return BadRow(raw.line, "id", reason)
    seen.add(store.id)
    return store


def check_importable(repository: StoreRepository) -> None:
    """Raise StoresReadOnly unless stores are kept where a file is imported to: in solocron's own
    table."""
    if not isinstance(repository, TableStores):
        raise StoresReadOnly(
            f"stores are kept by {type(repository).__name__}, not in solocron's table: create and "
            "change them there"
        )
    repository.check_ours()


async def import_stores(
    database: Database,
    path: Path,
    *,
    clock: Clock,
    skip_bad: bool = False,
    advance: Advance = lambda rows, total: None,
) -> ImportReport:
    """Import a stores file into solocron's own table: nothing if a row is bad, unless `skip_bad`.

    `advance(rows, total)` is told of rows as they are done: once when checked (`total` is None,
    nobody has counted them yet), once when written.
    Raises InvalidInput (the file cannot be read: nothing is written) or StorageUnavailable
    (what was written stays; import the file again).
    """
    count = bad_count = 0
    bad: list[BadRow] = []
    rows = read(path)
    while batch := await asyncio.to_thread(_take, rows):
        wrong = [row for row in batch if isinstance(row, BadRow)]
        bad.extend(wrong[: MAX_BAD_KEPT - len(bad)])
        bad_count += len(wrong)
        count += len(batch)
        advance(len(batch), None)
    imported = 0
    if not bad_count or skip_bad:
        imported = await _write(database, path, clock, bad_count, partial(advance, total=count))
    return ImportReport(count, imported, tuple(bad), bad_count)


async def _write(
    database: Database, path: Path, clock: Clock, known_bad: int, advance: Callable[[int], None]
) -> int:
    repository = StoreTable().on(database)
    imported = bad = 0
    rows = read(path)
    while batch := await asyncio.to_thread(_take, rows):
        stores = [row for row in batch if isinstance(row, Store)]
        bad += len(batch) - len(stores)
        if bad > known_bad:
            raise InvalidInput(f"file {shown(str(path))} changed meanwhile: import it again")
        async with database.begin() as connection:
            await repository.put_many(connection, stores, int(clock.now_ms()))
        imported += len(stores)
        advance(len(batch))
    return imported


def _take(rows: Iterator[Row]) -> list[Row]:
    return list(islice(rows, _BATCH))
