"""A host's table is looked at when a server starts: what does not fit stops it, by its name."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from commands import Cli, finished, listening
from conftest import RedisServer
from shops_table import SHOPS, SHOPS_SETTINGS, create_shops, put_shops
from solocron.errors import ConfigError
from solocron.storage.engine import Database
from solocron.stores import HoursKey, Store, StoreName, StoreTable

COLUMNS = "shop_id INTEGER PRIMARY KEY, title TEXT, opening_hours TEXT, open SMALLINT"


async def run(database: Database, *statements: str) -> None:
    async with database.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def told(database: Database, table: StoreTable = SHOPS) -> str:
    """What the check of the table says."""
    with pytest.raises(ConfigError) as caught:
        await table.on(database).check()
    return str(caught.value)


@pytest.fixture
async def cli(
    tmp_path: Path, redis_server: RedisServer, database: Database, database_url: str
) -> AsyncIterator[Cli]:
    """Commands over a host's table, which is not there yet, in a migrated database."""
    cli = Cli(
        tmp_path, {"REDIS_URL": redis_server.url, "DATABASE_URL": database_url, **SHOPS_SETTINGS}
    )
    yield cli
    await cli.close()


# -- what it is made of ------------------------------------------------------------------------


async def test_a_missing_table_is_named(database: Database) -> None:
    assert await told(database) == "stores table 'shops': there is no such table or view in the " \
        "database"  # fmt: skip


async def test_a_missing_schema_is_named(database: Database) -> None:
    said = await told(database, StoreTable("shops", schema="sales"))
    assert said == "stores table 'sales.shops': there is no schema 'sales' in the database"


async def test_a_missing_column_is_named_with_those_that_are_there(database: Database) -> None:
    await run(database, f"CREATE TABLE shops ({COLUMNS.replace('opening_hours', 'hours')})")
    assert await told(database) == (
        "stores table 'shops' has no column 'opening_hours', which is to be hours; it has "
        "shop_id, title, hours, open"
    )


async def test_of_a_wide_table_twenty_columns_are_named(database: Database) -> None:
    wide = ", ".join(f"c{n} TEXT" for n in range(300))
    await run(database, f"CREATE TABLE shops ({wide})")
    assert (await told(database)).endswith("c18, c19")


@pytest.mark.parametrize(
    ("column", "type_", "told_of"),
    [
        ("shop_id", "REAL", "but id must be an integer, text or a uuid"),
        ("shop_id", "DATE", "but id must be an integer, text or a uuid"),
        ("title", "INTEGER", "but name must be text; a view can cast it"),
        ("opening_hours", "DATE", "but hours must be text; a view can cast it"),
        ("open", "TEXT", "but is_open must be a boolean, or an integer of 0 and 1"),
        ("open", "REAL", "but is_open must be a boolean, or an integer of 0 and 1"),
    ],
)
async def test_a_column_of_another_type_is_named(
    database: Database, column: str, type_: str, told_of: str
) -> None:
    columns = re.sub(rf"{column} [A-Z]+( PRIMARY KEY)?", f"{column} {type_}", COLUMNS)
    await run(database, f"CREATE TABLE shops ({columns})")
    said = await told(database)
    assert said.startswith(f"stores table 'shops': column '{column}' is ") and said.endswith(
        told_of
    )


async def test_an_optional_column_is_judged_where_it_is_named(database: Database) -> None:
    await run(database, f"CREATE TABLE shops ({COLUMNS}, tz INTEGER)")
    await SHOPS.on(database).check()
    table = StoreTable("shops", {**SHOPS.columns, "timezone": "tz"})
    assert "column 'tz' is INTEGER, but timezone must be text" in await told(database, table)


async def test_a_table_that_fits_is_warned_of_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await create_shops(database)
    with caplog.at_level(logging.WARNING, "solocron"):
        await SHOPS.on(database).check()
    assert caplog.messages == []


async def test_each_index_that_is_missing_is_told_with_what_creates_it(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await run(database, f"CREATE TABLE shops ({COLUMNS.replace('PRIMARY KEY', 'NOT NULL')})")
    await SHOPS.on(database).check()
    ids, hours = caplog.messages
    assert ids == (
        "Table shops: its ids are not unique; run: "
        "CREATE UNIQUE INDEX shops_by_id ON shops (shop_id);"
    )
    assert hours == (
        "Table shops: stores that are due are looked for in all of it; run: "
        "CREATE INDEX shops_by_hours ON shops (opening_hours, open, shop_id);"
    )
    caplog.clear()
    await run(database, *(each.partition("run: ")[2].rstrip(";") for each in (ids, hours)))
    await SHOPS.on(database).check()
    assert caplog.messages == []


async def test_names_that_need_quotes_are_quoted_in_the_statement(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await run(
        database,
        'CREATE TABLE "My Shops" ("Id" INTEGER, name TEXT, "order" TEXT, is_open INTEGER, '
        "timezone TEXT)",
    )
    table = StoreTable("My Shops", {"id": "Id", "hours": "order"})
    await table.on(database).check()
    statements = [each.partition("run: ")[2].rstrip(";") for each in caplog.messages]
    assert statements[1].endswith('("order", timezone, is_open, "Id")')
    caplog.clear()
    await run(database, *statements)
    await table.on(database).check()
    assert caplog.messages == []


async def test_stores_of_a_view_are_read_and_closed_without_an_index(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await create_shops(database)
    await put_shops(database, [Store("7", "Mitte", "", "24/7", is_open=True)])
    await run(
        database,
        "CREATE VIEW listed AS SELECT shop_id AS id, title AS name, opening_hours AS hours, "
        "CAST('UTC' AS TEXT) AS timezone, open AS is_open FROM shops",
    )
    stores = StoreTable("listed").on(database)
    await stores.check()
    assert caplog.messages == []
    assert (await stores.get_many(["7"]))["7"] == Store("7", "Mitte", "UTC", "24/7", is_open=True)
    if database.dialect == "sqlite":  # it changes no view
        return
    async with database.begin() as connection:
        key = HoursKey("24/7", "UTC", "")
        closed = await stores.close_due(connection, [key], now_ms=0, limit=10)
    assert closed == [StoreName("7", "Mitte")]
    assert [each.is_open for each in await SHOPS.on(database).page()] == [False]


# -- how a command ends ------------------------------------------------------------------------


async def test_a_table_that_does_not_fit_stops_the_start_in_one_line(
    cli: Cli, database: Database
) -> None:
    missing = await cli("serve", SOLOCRON_PORT="0", SOLOCRON_LOG_LEVEL="error")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err.splitlines() == [
        "solocron: stores table 'shops': there is no such table or view in the database"
    ]
    await run(database, f"CREATE TABLE shops ({COLUMNS.replace('SMALLINT', 'TEXT')})")
    unfit = await cli("serve", SOLOCRON_PORT="0", SOLOCRON_LOG_LEVEL="error")
    assert unfit.code == 2 and len(unfit.err.splitlines()) == 1
    assert "column 'open' is TEXT" in unfit.complaint
    listed = await cli("stores", "list")
    assert listed.code == 2 and listed.complaint == unfit.complaint


async def test_an_index_that_is_missing_stops_no_start(cli: Cli, database: Database) -> None:
    await run(database, f"CREATE TABLE shops ({COLUMNS})")
    process = await cli.start("serve", SOLOCRON_PORT="0", SOLOCRON_LOG_FORMAT="json")
    assert process.stderr is not None
    warned = await process.stderr.readline()
    while b"CREATE INDEX shops_by_hours ON shops (opening_hours, open, shop_id);" not in warned:
        assert warned, "serve ended before it warned"
        warned = await process.stderr.readline()
    assert b'"warning"' in warned.lower()
    await listening(process)
    process.send_signal(signal.SIGTERM)
    assert (await finished(process)).code == 0


async def test_an_import_into_a_hosts_table_is_refused(cli: Cli, database: Database) -> None:
    await create_shops(database)
    (cli.folder / "stores.csv").write_text("id,name,timezone,hours\n1,Mitte,UTC,24/7\n")
    refused = await cli("stores", "import", "stores.csv")
    assert (refused.code, refused.out) == (2, "")
    assert refused.complaint == (
        "solocron: stores are kept in the table 'shops', which is not solocron's: create and "
        "change them there"
    )
    for table in (StoreTable(), SHOPS):
        assert await table.on(database).page() == []
