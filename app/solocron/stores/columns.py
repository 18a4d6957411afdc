"""Which table stores are kept in, and which of its columns is what.

Of a host's own table solocron reads the columns it is told, and writes nothing but whether a store
is open. What the table has no column for is the same for all stores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Connection, Index, MetaData, Table, inspect, types
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.schema import CreateIndex

from solocron.errors import ConfigError, InvalidInput
from solocron.storage.tables import stores
from solocron.stores.hours import check_country, check_zone, shown
from solocron.stores.model import is_store_id

REQUIRED = ("id", "name", "hours", "is_open")
OPTIONAL = ("timezone", "country", "contact")
FIELDS = (*REQUIRED, *OPTIONAL)
KEY = ("hours", "timezone", "country")
MAX_NAME = 63  # of a table or a column: PostgreSQL cuts longer ones
MAX_ID = 64
_EXAMPLE = "id=shop_id name=title timezone='Europe/Berlin' hours=opening_hours is_open=open"
_PART = re.compile(r"(\w+)=(?:'([^']*)'|(\S+))")
_MAX_SHOWN = 20


def parse_columns(text: str) -> dict[str, Any]:
    """The arguments of a StoreTable that `SOLOCRON_STORES_COLUMNS` names: `field=column`, apart by
    blanks, and `field='value'` for what is the same for all stores. Raises ConfigError."""
    columns: dict[str, str | None] = {}
    values: dict[str, str] = {}
    rest = _PART.sub("", text).strip()
    if rest:
        raise ConfigError(f" has {shown(rest)}: write {_EXAMPLE}")
    for name, value, column in _PART.findall(text):
        if name in columns or name in values:
            raise ConfigError(f" has {shown(name)} twice: give it once")
        if column:
            columns[name] = column
        elif name in ("timezone", "country"):
            values[name] = value
            columns[name] = None
        else:
            raise ConfigError(
                f" has {shown(name)} with a value: only timezone and country can have one; "
                "name a column"
            )
    return {"columns": columns, **values}


@dataclass(frozen=True)
class Layout:
    """The table as the queries need it: `columns` by what they are to us. `id_type` is str, int or
    UUID; `flag` says what stands for open and for closed; `long_ids`: there may be ids of more than
    64 characters, which no store can have; `stamped`: a change notes its time."""

    table: Table
    columns: Mapping[str, Column[Any]]
    timezone: str = ""
    country: str = ""
    id_type: type = str
    flag: Mapping[bool, Any] = field(default_factory=lambda: {True: True, False: False})
    long_ids: bool = False
    stamped: bool = False

    def to_id(self, store_id: str) -> Any:
        """The id as the table has it; None if it can have no such id."""
        if self.id_type is str:
            return store_id if is_store_id(store_id) else None
        try:
            value = self.id_type(store_id)
        except ValueError:
            return None
        if self.id_type is int and not -(2**63) <= value < 2**63:
            return None
        return value if str(value) == store_id else None


def own_layout() -> Layout:
    """Solocron's own table."""
    return Layout(stores, {name: stores.c[name] for name in FIELDS}, stamped=True)


def check_names(
    name: str, schema: str | None, columns: Mapping[str, str | None], timezone: str, country: str
) -> None:
    """Raise ConfigError for what no table can be described by."""
    for each in (name, *([schema] if schema is not None else []), *filter(None, columns.values())):
        if not 1 <= len(each) <= MAX_NAME or not each.isprintable():
            raise ConfigError(
                f"stores: {shown(each)} cannot be the name of a table, a schema or a column: give "
                f"1 to {MAX_NAME} printable characters"
            )
    for each, column in columns.items():
        if each not in FIELDS:
            raise ConfigError(
                f"stores: {shown(each)} is no field of a store: map {', '.join(FIELDS)}"
            )
        if column is None and each in REQUIRED:
            raise ConfigError(f"stores: {each} is None: name the column that has it")
    if columns.get("timezone", "") is None and not timezone:
        raise ConfigError("stores: give timezone, since no column has it, such as Europe/Berlin")
    try:
        if timezone:
            check_zone(timezone)
        check_country(country)
    except InvalidInput as error:
        raise ConfigError(f"stores: {error}") from None


def layout_of(
    connection: Connection, name: str, schema: str | None, mapped: Mapping[str, str],
    timezone: str, country: str,
) -> Layout:  # fmt: skip
    """The layout of a host's table, as the database has it; `mapped` are the fields' columns.
    Raises ConfigError, which names what does not fit."""
    about = f"stores table {shown(f'{schema}.{name}' if schema else name)}"
    looked = inspect(connection)
    if schema is not None and schema not in looked.get_schema_names():
        raise ConfigError(f"{about}: there is no schema {shown(schema)} in the database")
    try:
        found = {each["name"]: each for each in looked.get_columns(name, schema)}
    except NoSuchTableError:
        raise ConfigError(f"{about}: there is no such table or view in the database") from None
    columns: dict[str, Column[Any]] = {}
    for each, column in mapped.items():
        if column not in found:
            names = ", ".join(list(found)[:_MAX_SHOWN])
            raise ConfigError(
                f"{about} has no column {shown(column)}, which is to be {each}; it has {names}"
            )
        columns[each] = Column(column, _type(connection, each, found[column]["type"]))
    table = Table(name, MetaData(), *_distinct(columns), schema=schema)
    columns = {each: table.c[column] for each, column in mapped.items()}
    for each in ("name", "hours", *OPTIONAL):
        if each in columns and not _is_text(columns[each]):
            raise _unsuitable(about, each, columns[each], "text; a view can cast it")
    id_type = _id_type(about, columns["id"])
    length = getattr(columns["id"].type, "length", None) or MAX_ID + 1
    return Layout(
        table, columns, timezone, country, id_type, _flag(about, columns["is_open"]),
        long_ids=id_type is str and length > MAX_ID,
    )  # fmt: skip


def _distinct(columns: Mapping[str, Column[Any]]) -> list[Column[Any]]:
    return list({each.name: each for each in columns.values()}.values())


def _type(connection: Connection, name: str, type_: Any) -> Any:
    """The type of a column. SQLite has none for what a view computes: that is as it is cast."""
    untyped = connection.dialect.name == "sqlite" and isinstance(type_, types.NullType)
    return types.Text() if untyped and name not in ("id", "is_open") else type_


def _is_text(column: Column[Any]) -> bool:
    return isinstance(column.type, types.String) and not isinstance(column.type, types.Enum)


def _id_type(about: str, column: Column[Any]) -> type:
    if _is_text(column):
        return str
    if isinstance(column.type, types.Uuid):
        return UUID
    if isinstance(column.type, types.Integer):
        return int
    raise _unsuitable(about, "id", column, "an integer, text or a uuid")


def _flag(about: str, column: Column[Any]) -> Mapping[bool, Any]:
    if isinstance(column.type, types.Boolean):
        return {True: True, False: False}
    if isinstance(column.type, types.Integer):
        return {True: 1, False: 0}
    raise _unsuitable(about, "is_open", column, "a boolean, or an integer of 0 and 1")


def _unsuitable(about: str, name: str, column: Column[Any], wanted: str) -> ConfigError:
    return ConfigError(
        f"{about}: column {shown(column.name)} is {column.type}, but {name} must be {wanted}"
    )


def missing_indexes(connection: Connection, layout: Layout) -> list[tuple[str, str]]:
    """What the table lacks: why it matters, and the statement that mends it. Nothing of a view."""
    looked, table, columns = inspect(connection), layout.table, layout.columns
    if table.name not in looked.get_table_names(table.schema):
        return []
    indexes = looked.get_indexes(table.name, table.schema)
    unique: list[Sequence[str | None]] = [
        looked.get_pk_constraint(table.name, table.schema)["constrained_columns"]
    ]
    for each in looked.get_unique_constraints(table.name, table.schema):
        unique.append(each["column_names"])
    unique += [index["column_names"] for index in indexes if index["unique"]]
    missing = []
    if [columns["id"].name] not in unique:
        index = Index(f"{table.name}_by_id"[:MAX_NAME], columns["id"], unique=True)
        missing.append(("its ids are not unique", _statement(connection, index)))
    if not any(index["column_names"][:1] == [columns["hours"].name] for index in indexes):
        by = [columns[each] for each in (*KEY, "is_open", "id") if each in columns]
        index = Index(f"{table.name}_by_hours"[:MAX_NAME], *by)
        missing.append(
            ("stores that are due are looked for in all of it", _statement(connection, index))
        )
    return missing


def _statement(connection: Connection, index: Index) -> str:
    return str(CreateIndex(index).compile(dialect=connection.dialect)).strip() + ";"
