"""The table of stores, and files of them, on both databases."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest
from sqlalchemy import select

from shops import own_stores
from shops import put_all as put_many
from solocron.clock import SystemClock
from solocron.errors import InvalidInput
from solocron.storage.engine import Database
from solocron.storage.tables import notifications
from solocron.stores.hours import HoursKey
from solocron.stores.importing import ImportReport, import_stores
from solocron.stores.model import Store
from solocron.stores.repository import UnknownStore
from solocron.stores.service import StoreService

NOW = 1_777_024_800_000  # Friday 2026-04-24 10:00 UTC
CLOCK = SystemClock()


@pytest.fixture
def repository(database: Database) -> StoreService:
    return own_stores(database)


def store(store_id: str, hours: str = "24/7", *, is_open: bool = False) -> Store:
    return Store(store_id, f"Store {store_id}", "Europe/Berlin", hours, "DE", is_open)


async def put_all(database: Database, rows: Iterable[Store]) -> None:
    await put_many(database, rows, NOW)


async def test_a_store_is_created_then_changed_but_not_reopened(
    repository: StoreService,
) -> None:
    assert await repository.put(store("a", is_open=True), NOW)
    await repository.set_open("a", False, NOW)
    renamed = dataclasses.replace(store("a", "Mo 09:00-18:00", is_open=True), name="New")
    assert not await repository.put(renamed, NOW + 5)
    assert await repository.get("a") == dataclasses.replace(
        renamed, is_open=False, notification_seq=1, updated_at=NOW + 5
    )


async def test_writers_of_a_new_store_create_it_once(repository: StoreService) -> None:
    created = await asyncio.gather(*(repository.put(store("a"), NOW) for _ in range(8)))
    assert sorted(created) == [False] * 7 + [True]


async def test_an_unknown_store_is_named(repository: StoreService) -> None:
    with pytest.raises(UnknownStore, match="'nowhere'"):
        await repository.get("nowhere")
    with pytest.raises(UnknownStore, match="'nowhere'"):
        await repository.set_open("nowhere", True, NOW)


async def test_pages_follow_one_another(database: Database, repository: StoreService) -> None:
    await put_all(database, (store(f"s{n:03}", is_open=n % 3 == 0) for n in range(100)))
    found: list[Store] = []
    while page := await repository.page(found[-1].id if found else None, 30):
        found += page
    assert [each.id for each in found] == [f"s{n:03}" for n in range(100)]
    open_ids = [each.id for each in await repository.page(limit=1000, is_open=True)]
    assert open_ids == [f"s{n:03}" for n in range(0, 100, 3)]
    for limit in (0, 1001, -1):
        with pytest.raises(InvalidInput, match=f"limit {limit}"):
            await repository.page(limit=limit)


async def test_opening_and_closing_are_told_once(
    database: Database, repository: StoreService
) -> None:
    await repository.put(store("a"), NOW)
    opened, told = await repository.set_open("a", True, NOW)
    again, nothing = await repository.set_open("a", True, NOW + 1)
    closed, told_too = await repository.set_open("a", False, NOW + 2)
    assert (opened.is_open, again.is_open, closed.is_open) == (True, True, False)
    assert [(each.seq, each.type, each.data) for each in [*told, *nothing, *told_too]] == [
        (1, "store.opened", {"name": "Store a", "reason": "api"}),
        (2, "store.closed", {"name": "Store a", "reason": "api"}),
    ]
    async with database.connect() as connection:
        rows = (await connection.execute(select(notifications.c.seq))).scalars().all()
    assert sorted(rows) == [1, 2]
    assert again.updated_at == NOW


async def test_many_that_open_a_store_at_once_tell_of_it_once(repository: StoreService) -> None:
    await repository.put(store("a"), NOW)
    results = await asyncio.gather(*(repository.set_open("a", True, NOW) for _ in range(8)))
    assert sorted(len(told) for _, told in results) == [0] * 7 + [1]
    assert (await repository.get("a")).notification_seq == 1


async def test_hours_are_counted_by_key(database: Database, repository: StoreService) -> None:
    rows = [store("a", is_open=True), store("b", is_open=True), store("c", "off", is_open=True)]
    await put_all(database, [*rows, store("d")])
    berlin = ("Europe/Berlin", "DE")
    assert await repository.hours_keys(True) == {
        HoursKey("24/7", *berlin): 2, HoursKey("off", *berlin): 1
    }  # fmt: skip
    assert await repository.hours_keys(False) == {HoursKey("24/7", *berlin): 1}


async def test_imports_in_opposite_orders_do_not_block_each_other(database: Database) -> None:
    rows = [store(f"s{n}") for n in range(300)]
    await put_all(database, rows)
    for _ in range(5):
        await asyncio.gather(put_all(database, rows), put_all(database, reversed(rows)))


def csv_file(folder: Path, count: int, *extra: str) -> Path:
    path = folder / "stores.csv"
    lines = ["id,name,timezone,hours,country,is_open"]
    lines += [f"s{n:05},Store {n},Europe/Berlin,Mo-Fr 09:00-18:00,DE,true" for n in range(count)]
    path.write_text("\n".join([*lines, *extra]) + "\n")
    return path


async def test_a_file_is_imported_and_imported_again(
    database: Database, repository: StoreService, tmp_path: Path
) -> None:
    path, done = csv_file(tmp_path, 1234), list[tuple[int, int | None]]()
    report = await import_stores(
        database, path, clock=CLOCK, advance=lambda rows, total: done.append((rows, total))
    )
    assert report == ImportReport(1234, 1234, (), 0)
    assert done == [(n, total) for total in (None, 1234) for n in (500, 500, 234)]
    await repository.set_open("s00007", False, NOW)
    before = await repository.page(limit=1000)
    assert [each.is_open for each in before].count(True) == 999
    assert (await import_stores(database, path, clock=CLOCK)).imported == 1234
    after = await repository.page(limit=1000)
    assert [dataclasses.replace(each, updated_at=0) for each in after] == [
        dataclasses.replace(each, updated_at=0) for each in before
    ]
    assert (await repository.get("s00007")).notification_seq == 1


async def test_one_bad_row_keeps_the_whole_file_out(
    database: Database, repository: StoreService, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, 600, "x,X,Mars/Base,24/7,,", "s00001,Again,UTC,24/7,,")
    report = await import_stores(database, path, clock=CLOCK)
    assert (report.read, report.imported, report.bad_count) == (602, 0, 2)
    assert [(each.line, each.field) for each in report.bad] == [(602, "timezone"), (603, "id")]
    assert await repository.page() == []


async def test_bad_rows_can_be_skipped(
    database: Database, repository: StoreService, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, 2, *["bad row"] * 1500, "good,G,UTC,24/7,,")
    report = await import_stores(database, path, clock=CLOCK, skip_bad=True)
    assert (report.read, report.imported, report.bad_count) == (1503, 3, 1500)
    assert len(report.bad) == 1000
    assert [each.id for each in await repository.page()] == ["good", "s00000", "s00001"]


async def test_an_unreadable_file_writes_nothing(
    database: Database, repository: StoreService, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, 600)
    path.write_bytes(path.read_bytes() + b"x,caf\xe9,UTC,24/7,,\n")
    with pytest.raises(InvalidInput, match="line 602 is not UTF-8"):
        await import_stores(database, path, clock=CLOCK)
    assert await repository.page() == []


async def test_a_file_that_changes_between_the_passes_is_noticed(
    database: Database, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, 10)

    def spoil(rows: int, total: int | None) -> None:
        csv_file(tmp_path, 10, "bad row")

    with pytest.raises(InvalidInput, match="changed meanwhile"):
        await import_stores(database, path, clock=CLOCK, advance=spoil)
