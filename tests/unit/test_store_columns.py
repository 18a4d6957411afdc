"""What the settings may say of a host's table: each mistake is named, with its remedy."""

from __future__ import annotations

from typing import Any

import pytest

from solocron.errors import ConfigError
from solocron.settings import load
from solocron.stores import StoreTable
from solocron.stores.columns import parse_columns

README = "id=shop_id name=title hours=opening_hours is_open=open timezone='Europe/Berlin'"


def test_columns_and_values_are_told_apart_by_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOCRON_STORES_TABLE", "sales.shops")
    monkeypatch.setenv("SOLOCRON_STORES_COLUMNS", f"  {README}\n country=land ")
    assert load().store_table == StoreTable(
        "shops",
        columns={"id": "shop_id", "name": "title", "hours": "opening_hours", "is_open": "open",
                 "timezone": None, "country": "land"},
        schema="sales", timezone="Europe/Berlin",
    )  # fmt: skip


def test_nothing_said_is_solocrons_own_table() -> None:
    assert parse_columns("") == {"columns": {}}
    assert load().store_table == StoreTable()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shop_id", " has 'shop_id': write id=shop_id"),
        ("id=a, name", " has 'name': write id=shop_id"),
        ("id = shop_id", " has 'id = shop_id': write"),
        ("=x", " has '=x': write"),
        ("id=", " has 'id=': write"),
        ("id=a id=b", " has 'id' twice: give it once"),
        ("timezone=tz timezone='UTC'", " has 'timezone' twice: give it once"),
        ("name='Shop'", " has 'name' with a value: only timezone and country can have one"),
        ("id=''", " has 'id' with a value: only timezone and country can have one"),
        ("shop=id", ": stores: 'shop' is no field of a store: map id, name, hours"),
        ("timezone=''", ": stores: give timezone, since no column has it"),
        ("timezone='Mars/Base'", ": stores: timezone 'Mars/Base': give an IANA name"),
        ("timezone='UTC' country='Germany'", ": stores: country 'Germany': "),
        ("id=" + "x" * 64, ": stores: 'xxxx"),
        ("id=\x01", ": stores: '\\x01' cannot be the name of a table, a schema or a column: give"),
        ("!" * 2000, " has '!!!!"),
        ("id=a " * 500, ": give at most 2000 characters"),
    ],
)
def test_columns_that_cannot_be_are_named(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("SOLOCRON_STORES_COLUMNS", text)
    with pytest.raises(ConfigError) as caught:
        load()
    (line,) = str(caught.value).splitlines()
    assert line.startswith("SOLOCRON_STORES_COLUMNS") and told in line
    assert len(line) < 350


@pytest.mark.parametrize("text", ["\x1f", ".", "shop.", ".shop", "x" * 64, f"{'x' * 64}.shops"])
def test_a_table_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOLOCRON_STORES_TABLE", text)
    with pytest.raises(ConfigError) as caught:
        load()
    (line,) = str(caught.value).splitlines()
    assert line.startswith("SOLOCRON_STORES_TABLE: stores: '")
    assert "give 1 to 63 printable characters" in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"columns": {"id": None}}, "id is None: name the column"),
        ({"columns": {"timezone": None}}, "give timezone"),
        ({"columns": {"shop": "id"}}, "'shop' is no field of a store"),
        ({"schema": ""}, "'' cannot be the name"),
        ({"country": "Germany"}, "country 'Germany'"),
    ],
)
def test_a_table_described_in_code_is_judged_alike(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=r"^stores: ") as caught:
        StoreTable("shops", **options)
    assert told in str(caught.value)
