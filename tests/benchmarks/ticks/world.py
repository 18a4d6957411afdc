"""What the servers of the benchmark work on: a Redis, and a PostgreSQL that logs each statement
when it is told to."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from conftest import RedisServer, execute
from faults.campaign.postgres import Postgres
from solocron.storage.engine import Database
from workers import NEVER

_TEMPLATE = "template_of_benchmark"


class World:
    """Servers; `redis` is emptied, and a database made, for each turn."""

    def __init__(self, redis: RedisServer, url: str) -> None:
        self.redis = redis
        self._url = url
        self._numbers = count()

    def prepare(self) -> None:
        """A migrated database, of which others are made."""
        execute(self._url, f"CREATE DATABASE {_TEMPLATE}")
        asyncio.run(_migrate(self._named(_TEMPLATE)))

    def database(self, *, migrated: bool = True) -> str:
        """The URL of a database of its own."""
        name = f"turn{next(self._numbers)}"
        template = f" TEMPLATE {_TEMPLATE}" if migrated else ""
        execute(self._url, f"CREATE DATABASE {name}{template}")
        return self._named(name)

    def environment(self, *, migrated: bool) -> dict[str, str]:
        """The environment of a process that has Redis and a database to itself."""
        self.redis.cli("FLUSHALL")
        settings = {
            "port": "0", "store_auto_close_schedule": NEVER, "store_open_reminder_schedule": NEVER,
        }  # fmt: skip
        variables = {f"SOLOCRON_{name.upper()}": value for name, value in settings.items()}
        url = self.database(migrated=migrated)
        return {"REDIS_URL": self.redis.url, "DATABASE_URL": url, **variables}

    def log_statements(self, on: bool) -> None:
        """Have PostgreSQL write each statement to its log, behind the client's name, or not."""
        if on:
            execute(
                self._url, "ALTER SYSTEM SET log_statement = 'all'",
                "ALTER SYSTEM SET log_line_prefix = '%a|'", "SELECT pg_reload_conf()",
            )  # fmt: skip
        else:
            execute(
                self._url, "ALTER SYSTEM RESET log_statement",
                "ALTER SYSTEM RESET log_line_prefix", "SELECT pg_reload_conf()",
            )  # fmt: skip

    def _named(self, name: str) -> str:
        return self._url.replace("/postgres?", f"/{name}?")


async def _migrate(url: str) -> None:
    database = Database(url)
    await database.migrate()
    await database.close()


@contextmanager
def world() -> Iterator[tuple[World, Path]]:
    """The servers, and the log of PostgreSQL, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="ticks-", ignore_cleanup_errors=True) as folder:
        redis, postgres = RedisServer(Path(folder)), Postgres(Path(folder))
        try:
            redis.start()
            asyncio.run(postgres.start())
            made = World(redis, postgres.url)
            made.prepare()
            yield made, postgres.log
        finally:
            asyncio.run(postgres.stop())
            redis.stop()
