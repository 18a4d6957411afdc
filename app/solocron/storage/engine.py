"""One engine per process, on SQLite or PostgreSQL, with errors translated at this edge."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from solocron.errors import ConfigError, StorageUnavailable
from solocron.storage.cut import Cut
from solocron.storage.migrate import head_revision, upgrade
from solocron.storage.tables import metadata

log = logging.getLogger("solocron.storage")

_T = TypeVar("_T")

BUSY_TIMEOUT_MS = 5_000
_LOCK_TIMEOUT_MS = 5_000
_CONNECT_TIMEOUT_S = 2
POOL_SIZE = 10
_POOL_KEPT = 5  # of them stay open
POOL_TIMEOUT_S = 5

WITHIN_S = 60.0
_COMMIT_S = 10.0
_CLEANUP_S = 2.0
_ANSWER_S = 2.0

# Answers of PostgreSQL that say nothing of the statement itself: a lock not had in time, a session
# ended by the server (shut down, or idle in a transaction), a deadlock, a serialization failure,
# a cancelled statement; that the role may not do it, or that a column waits for a migration.
_REFUSALS = frozenset({"55P03", "57P01", "25P03", "40P01", "40001", "57014", "42501", "42703"})

_MISSING_TABLE = re.compile(r'no such table: (?:main\.)?(\w+)|relation "(\w+)" does not exist')
_OURS = {*metadata.tables, "alembic_version"}

_EXAMPLES = "give sqlite:///file.db, postgresql://user@host:5432/name, or none"
_POSTGRES_OPTIONS = ("host", "port", "ssl", "sslmode", "passfile")


class DatabaseNow(FunctionElement[int]):
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
        self._url = parse_url(url)
        self._up: bool | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self.dialect = self._url.get_backend_name()
        if self.dialect == "postgresql":
            self._engine = _postgres(self._url, idle_ms)
        else:
            self._engine = _sqlite(self._url)

    def __repr__(self) -> str:
        return f"Database({_shown(self._url)})"

    @property
    def is_lost(self) -> bool:
        """Whether no connection could be had when one was last wanted (the log says so)."""
        return self._up is False

    @asynccontextmanager
    async def begin(self, within_s: float | None = WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """A write transaction of at most `within_s` s (None: any time): committed at the end,
        rolled back by an exception.

        Raises StorageUnavailable when the database is gone, stays locked or does not answer;
        whether a commit that lost its reply took place is then unclear.
        """
        async with self._connected(within_s) as (connection, cut):
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
                    try:
                        yield connection
                    except BaseException:
                        cut.within(_CLEANUP_S)
                        raise
                    cut.within(_COMMIT_S)

    @asynccontextmanager
    async def connect(self, within_s: float | None = WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """A connection to read with, for `within_s` s at most. Raises StorageUnavailable."""
        async with self._connected(within_s) as (connection, _):
            yield connection

    @asynccontextmanager
    async def _connected(
        self, within_s: float | None
    ) -> AsyncIterator[tuple[AsyncConnection, Cut]]:
        if not self._up and (reason := _cannot_open(self._url)):
            raise self._lost(StorageUnavailable(f"database {_shown(self._url)}: {reason}"))
        async with AsyncExitStack() as stack:
            try:
                connection, cut = await self._open_live()
                stack.push_async_callback(self._return, connection, cut)
            except PoolTimeout as error:  # every connection is in use: nothing is lost
                raise _unavailable(error, self._url) from error
            except Exception as error:
                if not _is_of_link(error):
                    raise
                raise self._lost(_unavailable(error, self._url)) from error
            if not self._up:
                if self._up is False:
                    log.info("Database ready again")
                self._up = True
            with _Translated(self._url):
                cut.within(within_s)
                yield connection, cut

    async def _open_live(self) -> tuple[AsyncConnection, Cut]:
        """A connection whose other end answers: any that lay idle may be dead."""
        for _ in range(POOL_SIZE):
            connection = await self._open()
            cut = Cut(connection)
            try:
                if await cut.answers(_ANSWER_S):
                    return connection, cut
                await connection.invalidate()
            except BaseException:
                await self._return(connection, cut)
                raise
            await self._return(connection, cut)
        raise TimeoutError("connections are made, but none is answered")

    async def _open(self) -> AsyncConnection:
        """A connection from the pool. Opening it goes on for a cancelled caller, and is undone:
        the drivers would leave a half-open one behind."""
        opening = self._own(self._engine.connect().start())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(Exception):
                connection = await opening
                await self._return(connection, Cut(connection))
            raise

    async def _return(self, connection: AsyncConnection, cut: Cut) -> None:
        """Give the connection back. What was to be committed is: if the session is gone by now,
        nothing was lost with it."""

        async def close() -> None:
            cut.within(_CLEANUP_S)
            try:
                await connection.close()
            except (DBAPIError, OSError) as error:
                log.debug("a session had ended before it was given back: %s", error)
            finally:
                cut.cancel()

        await asyncio.shield(self._own(close()))

    def _own(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """A task that `close` waits for, whatever becomes of its caller."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def _lost(self, error: StorageUnavailable) -> StorageUnavailable:
        """Say once that no connection can be had; `connect` says when one can again."""
        if self._up is not False:
            self._up = False
            log.warning("Database lost: %s; runs wait", error)
        return error

    async def migrate(self) -> None:
        """Bring the schema to this release's. Safe when several workers start at once."""
        if self.dialect == "sqlite":
            async with self.begin(None) as connection:
                await upgrade(connection)
            return
        async with self.begin(None) as connection:
            await connection.execute(text("SET LOCAL lock_timeout = 0"))  # a migration may be long
            await connection.execute(text("SELECT pg_advisory_xact_lock(7305814426)"))
            await upgrade(connection)

    async def check(self) -> None:
        """Raise StorageUnavailable unless the database answers and has this release's schema."""
        async with self.connect() as connection:
            query = text("SELECT version_num FROM alembic_version")
            found = (await connection.execute(query)).scalar()
        if found != head_revision():
            raise StorageUnavailable(
                f"database {_shown(self._url)}: its schema is {found}, this release's is "
                f"{head_revision()}: run `solocron migrate`"
            )

    async def is_ready(self) -> bool:
        """Whether the database answers and has this release's schema."""
        try:
            await self.check()
        except (StorageUnavailable, DBAPIError):
            return False
        return True

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        await self._engine.dispose()


class _Translated:
    """Failures of the connection or of waiting, and a schema that is not there, become
    StorageUnavailable; all else passes, an OSError or a timeout of the caller's own too."""

    def __init__(self, url: URL) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, DBAPIError):
            return
        missing = _MISSING_TABLE.search(str(error.orig))
        if missing and (missing[1] or missing[2]) in _OURS:
            raise StorageUnavailable(
                f"database {_shown(self._url)} is not migrated: run `solocron migrate`"
            ) from error
        lost = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
        if lost or getattr(error.orig, "sqlstate", None) in _REFUSALS:
            raise _unavailable(error, self._url) from error


def _is_of_link(error: Exception) -> bool:
    """Whether it says that no connection could be had. One that ends while it is being set up is
    told in the driver's own words, which SQLAlchemy does not translate."""
    drivers = type(error).__module__.partition(".")[0] == "asyncpg"
    return drivers or isinstance(error, DBAPIError | OSError)


def _unavailable(error: Exception, url: URL) -> StorageUnavailable:
    cause = getattr(error, "orig", None) or error
    return StorageUnavailable(f"database {_shown(url)}: {type(cause).__name__}: {cause}")


def _cannot_open(url: URL) -> str | None:
    """Why an SQLite file cannot be opened: the driver says no more than that it cannot, and from
    a thread that may outlive the event loop."""
    if url.get_backend_name() != "sqlite":
        return None
    file = Path(url.database or "")
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}: create it"
    if file.is_dir():
        return "that is a folder: name a file"
    if not os.access(file if file.exists() else file.parent, os.R_OK | os.W_OK):
        return "this user may not write it: change its owner or name another file"
    return None


def _shown(url: URL) -> str:
    """The URL without what may be secret: its password and its options."""
    backend = url.get_backend_name()
    bare = url.set(drivername=backend, password=None, query={})
    return bare.render_as_string(hide_password=True)


def parse_url(url: str) -> URL:
    """The database's URL with the driver that serves it. Raises ConfigError, which shows nothing
    of it that may be secret."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(f"DATABASE_URL is not a URL: {_EXAMPLES}") from None
    backend = parsed.drivername.partition("+")[0]
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    drivers["postgres"] = drivers["postgresql"]
    if backend not in drivers:
        raise ConfigError(f"DATABASE_URL begins with {backend[:40]!r}: {_EXAMPLES}")
    parsed = parsed.set(drivername=drivers[backend])
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("DATABASE_URL names no file: give sqlite:///file.db")
        return parsed
    unknown = [name for name in parsed.query if name not in _POSTGRES_OPTIONS]
    if unknown:
        raise ConfigError(
            f"DATABASE_URL has the option {unknown[0][:40]!r}: {_EXAMPLES}, with no options but "
            f"{', '.join(_POSTGRES_OPTIONS)}"
        )
    options = dict(parsed.query)
    if "sslmode" in options:  # libpq's name for what the driver calls ssl
        options.setdefault("ssl", options.pop("sslmode"))
    return parsed.set(query=options)


def _postgres(url: URL, idle_ms: int) -> AsyncEngine:
    settings = {
        "idle_in_transaction_session_timeout": str(idle_ms),
        "lock_timeout": str(_LOCK_TIMEOUT_MS),
        "application_name": f"solocron {os.getpid()}",  # as pg_stat_activity and logs show it
    }
    try:
        return create_async_engine(
            url, pool_size=_POOL_KEPT, max_overflow=POOL_SIZE - _POOL_KEPT,
            pool_timeout=POOL_TIMEOUT_S, hide_parameters=True,
            connect_args={"timeout": _CONNECT_TIMEOUT_S, "server_settings": settings},
        )  # fmt: skip
    except ImportError:
        raise ConfigError(
            "DATABASE_URL names PostgreSQL: install its driver: pip install 'solocron[postgres]'"
        ) from None


def _sqlite(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=_POOL_KEPT, max_overflow=POOL_SIZE - _POOL_KEPT,
        pool_timeout=POOL_TIMEOUT_S, hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )  # fmt: skip

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        _stops_once(connection.driver_connection)
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


def _stops_once(driver: Any) -> None:
    """Have whoever stops the driver's thread again wait for the same end: who waits for another,
    as a close does that was cancelled after the pool had given it up, waits for ever."""
    stop = driver.stop
    ends: list[asyncio.Future[None] | None] = []

    def once() -> Any:
        if not ends:
            ends.append(stop())
        return ends[0]

    driver.stop = once
