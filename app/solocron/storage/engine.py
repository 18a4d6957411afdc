"""One engine per process, on SQLite or PostgreSQL, with errors translated at this edge."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles

from solocron.errors import ConfigError, StorageUnavailable
from solocron.storage.migrate import head_revision, upgrade

log = logging.getLogger("solocron.storage")

BUSY_TIMEOUT_MS = 5_000
_LOCK_TIMEOUT_MS = 5_000
_CONNECT_TIMEOUT_S = 2
_POOL_TIMEOUT_S = 5

# Answers of PostgreSQL that say nothing of the statement itself: a lock not had in time, a session
# ended by the server (shut down, or idle in a transaction), a deadlock, a serialization failure,
# a cancelled statement, a table or column that is missing until somebody migrates.
_TRANSIENT = frozenset({"55P03", "57P01", "25P03", "40P01", "40001", "57014", "42P01", "42703"})


class DatabaseNow(ColumnElement[int]):
    """The database server's own time, UTC epoch ms: leases judged by it need no common clock."""

    inherit_cache = True
    type = BigInteger()


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(element: DatabaseNow, compiler: Any, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(DatabaseNow, "postgresql")
def _postgres_now(element: DatabaseNow, compiler: Any, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def database_now() -> ColumnElement[int]:
    """An SQL expression: the database server's time as UTC epoch ms."""
    return DatabaseNow()


class Database:
    """The database at `url` (`sqlite:///file` or `postgresql://user:password@host/name`).

    Connects when first used. Raises ConfigError for a URL it cannot use. `idle_ms` is how long
    PostgreSQL lets a transaction stand idle: a frozen process holds its row locks no longer.
    """

    def __init__(self, url: str, *, idle_ms: int = 10_000) -> None:
        self._url = _parse(url)
        self._up: bool | None = None
        self.dialect = self._url.get_backend_name()
        if self.dialect == "postgresql":
            self._engine = _postgres(self._url, idle_ms)
        else:
            self._engine = _sqlite(self._url)

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)})"

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction: committed at the end, rolled back by an exception.

        Raises StorageUnavailable when the database is gone or stays locked; whether a commit
        that lost its reply took place is then unclear.
        """
        async with self.connect() as connection:
            if self.dialect == "sqlite":
                await connection.execute(text("BEGIN IMMEDIATE"))
                try:
                    yield connection
                    await connection.commit()
                except BaseException:
                    await asyncio.shield(connection.rollback())
                    raise
            else:
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read with. Raises StorageUnavailable."""
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._engine.connect())
            except PoolTimeout as error:  # every connection is in use: nothing is lost
                raise _unavailable(error) from error
            except (DBAPIError, OSError) as error:
                raise self._lost(_unavailable(error)) from error
            if not self._up:
                if self._up is False:
                    log.info("Database ready again")
                self._up = True
            with _Translated():
                yield connection

    def _lost(self, error: StorageUnavailable) -> StorageUnavailable:
        """Say once that no connection can be had; `connect` says when one can again."""
        if self._up is not False:
            self._up = False
            log.warning("Database lost: %s; runs wait", error)
        return error

    async def migrate(self) -> None:
        """Bring the schema to this release's. Safe when several workers start at once."""
        if self.dialect == "sqlite":
            async with self.begin() as connection:
                await connection.run_sync(upgrade)
            return
        async with self.begin() as connection:
            await connection.execute(text("SET LOCAL lock_timeout = 0"))  # a migration may be long
            await connection.execute(text("SELECT pg_advisory_xact_lock(7305814426)"))
            await connection.run_sync(upgrade)

    async def is_ready(self) -> bool:
        """Whether the database answers and has this release's schema."""
        try:
            async with self.connect() as connection:
                query = text("SELECT version_num FROM alembic_version")
                return (await connection.execute(query)).scalar() == head_revision()
        except (StorageUnavailable, DBAPIError):
            return False

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._engine.dispose()


class _Translated:
    """Failures of the connection or of waiting become StorageUnavailable; all else passes, an
    OSError or a timeout of the caller's own too."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OperationalError | InterfaceError) or (
            isinstance(error, DBAPIError)
            and (
                error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _TRANSIENT
            )
        ):
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> StorageUnavailable:
    cause = getattr(error, "orig", None) or error
    return StorageUnavailable(f"database: {type(cause).__name__}: {cause}")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "DATABASE_URL is not a URL: give sqlite:///file.db or postgresql://user@host/name"
        ) from None
    backend = parsed.get_backend_name()
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    drivers["postgres"] = drivers["postgresql"]
    if backend not in drivers:
        raise ConfigError(
            f"DATABASE_URL {parsed.render_as_string(hide_password=True)!r}: "
            "only sqlite:/// and postgresql:// are supported"
        )
    return parsed.set(drivername=drivers[backend])


def _postgres(url: URL, idle_ms: int) -> AsyncEngine:
    settings = {
        "idle_in_transaction_session_timeout": str(idle_ms),
        "lock_timeout": str(_LOCK_TIMEOUT_MS),
        "application_name": f"solocron {os.getpid()}",  # as pg_stat_activity and logs show it
    }
    try:
        return create_async_engine(
            url, pool_size=5, max_overflow=5, pool_timeout=_POOL_TIMEOUT_S, pool_pre_ping=True,
            connect_args={"timeout": _CONNECT_TIMEOUT_S, "server_settings": settings},
        )  # fmt: skip
    except ImportError:
        raise ConfigError(
            "DATABASE_URL names PostgreSQL: install its driver with pip install solocron[postgres]"
        ) from None


def _sqlite(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=5, max_overflow=5, pool_timeout=_POOL_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )  # fmt: skip

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        # The driver must not begin on its own: `begin` takes the write lock at once, because a
        # read transaction that later wants to write fails without waiting.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Workers that meet on a new file may block each other here; WAL stays in the file, so it
        # is enough that one of them, or a later connection, sets it.
        cursor.execute("PRAGMA busy_timeout=100")
        with suppress(sqlite3.OperationalError):
            cursor.execute("PRAGMA journal_mode=WAL")
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON", "synchronous=NORMAL",
        ):  # fmt: skip
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
