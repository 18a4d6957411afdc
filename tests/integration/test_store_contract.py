"""The contract of a StoreRepository holds for all that there are, and finds each mistake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from sqlalchemy import text

from conftest import fresh_database
from shops import put_all
from shops_table import (
    SHOPS,
    Adapter,
    CommitsByItself,
    ForgetsCondition,
    ForgetsPlace,
    IgnoresLimit,
    LocksNothing,
    Numbers,
    ReadsBeside,
    RepeatsPages,
    create_shops,
    put_shops,
)
from solocron.stores import StoreTable
from solocron.testing import StoreRepositoryContract, StoresUnderTest
from solocron.testing.contract import Opened

IDS = [f"0198f1c2-0000-7000-8000-{number:012d}" for number in range(10)]


def opener(open_: Callable[[str], AsyncIterator[StoresUnderTest]], url: str) -> Opened:
    return partial(asynccontextmanager(open_), url)


async def own(url: str) -> AsyncIterator[StoresUnderTest]:
    async with fresh_database(url) as database:
        yield StoresUnderTest(
            StoreTable().on(database), database, lambda rows: put_all(database, rows, 0)
        )


async def mapped(url: str) -> AsyncIterator[StoresUnderTest]:
    async with fresh_database(url) as database:
        await create_shops(database)
        yield StoresUnderTest(
            SHOPS.on(database), database, partial(put_shops, database),
            fields=("name", "hours", "is_open"),
        )  # fmt: skip


async def with_uuids(url: str) -> AsyncIterator[StoresUnderTest]:
    """Ids that are uuids, a boolean, and a zone and a country of each."""
    async with fresh_database(url) as database:
        async with database.begin() as connection:
            await connection.execute(text("CREATE SCHEMA shop"))
            await connection.execute(
                text('CREATE TABLE shop."Places" ("Id" UUID PRIMARY KEY, name TEXT, tz TEXT, '
                     "hours TEXT, land CHAR(2), is_open BOOLEAN)")
            )  # fmt: skip

        async def put(rows: object) -> None:
            async with database.begin() as connection:
                for each in rows:  # type: ignore[attr-defined]
                    await connection.execute(
                        text('INSERT INTO shop."Places" VALUES (CAST(:id AS UUID), :name, :tz, '
                             ":hours, :land, :is_open)"),
                        {"id": each.id, "name": each.name, "tz": each.timezone,
                         "hours": each.hours, "land": each.country, "is_open": each.is_open},
                    )  # fmt: skip

        table = StoreTable(
            "Places", {"id": "Id", "timezone": "tz", "country": "land"}, schema="shop"
        )
        yield StoresUnderTest(
            table.on(database), database, put, ids=IDS,
            fields=("name", "hours", "is_open", "timezone", "country"),
        )  # fmt: skip


async def adapted(url: str, kind: type[Adapter] = Adapter) -> AsyncIterator[StoresUnderTest]:
    async with fresh_database(url) as database:
        adapter = kind(database)
        await adapter.create()
        yield StoresUnderTest(adapter, database, adapter.add, fields=("name", "hours", "is_open"))


class TestOwnTable(StoreRepositoryContract):
    @pytest.fixture
    def stores(self, database_url: str) -> Opened:
        return opener(own, database_url)


class TestMappedTable(StoreRepositoryContract):
    @pytest.fixture
    def stores(self, database_url: str) -> Opened:
        return opener(mapped, database_url)


class TestMappedTableOfUuids(StoreRepositoryContract):
    @pytest.fixture
    def stores(self, postgres_url: str) -> Opened:
        return opener(with_uuids, postgres_url)


class TestAdapter(StoreRepositoryContract):
    @pytest.fixture
    def stores(self, database_url: str) -> Opened:
        return opener(adapted, database_url)


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (ForgetsCondition, "test_it_closes_open_stores_with_those_hours_and_no_others"),
        (IgnoresLimit, "test_it_closes_no_more_than_the_limit_at_a_time"),
        (LocksNothing, "test_of_many_that_close_at_once_each_store_is_closed_by_one"),
        (LocksNothing, "test_what_is_told_of_a_store_is_what_became_of_it"),
        (CommitsByItself, "test_what_is_rolled_back_changed_nothing"),
        (ReadsBeside, "test_what_is_rolled_back_changed_nothing"),
        (ForgetsPlace, "test_it_lists_closed_stores_with_those_hours_in_order"),
        (ForgetsPlace, "test_each_tick_reminds_each_store_once"),
        (RepeatsPages, "test_its_pages_follow_one_another"),
        (Numbers, "test_it_finds_what_is_there_by_id_and_nothing_else"),
    ],
)
def test_the_contract_is_red_for_each_mistake(
    postgres_url: str, kind: type[Adapter], test: str
) -> None:
    stores: Opened = partial(asynccontextmanager(adapted), postgres_url, kind)
    with pytest.raises(AssertionError):
        getattr(StoreRepositoryContract(), test)(stores)
