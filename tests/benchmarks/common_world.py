"""What the servers of a benchmark work on: a Redis, and a PostgreSQL that logs each statement when
it is told to."""

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

_MIGRATED = "migrated"


class World:
    """Servers; `redis` is emptied, and a database made, for each turn. `folder` is theirs, and
    `log` what PostgreSQL says."""

    def __init__(self, redis: RedisServer, postgres: Postgres, folder: Path) -> None:
        self.redis = redis
        self.folder = folder
        self.log = postgres.log
        self._url = postgres.url
        self._numbers = count()

    def prepare(self) -> None:
        """A migrated database, of which others are made."""
        execute(self._url, f"CREATE DATABASE {_MIGRATED}")
        asyncio.run(_migrate(self._named(_MIGRATED)))

    def database(self, template: str | None = _MIGRATED) -> str:
        """The URL of a database of its own, with all that the one of that name or URL has."""
        name = f"turn{next(self._numbers)}"
        of = "" if template is None else f" TEMPLATE {template.partition('?')[0].split('/')[-1]}"
        execute(self._url, f"CREATE DATABASE {name}{of}")
        return self._named(name)

    def drop(self, url: str) -> None:
        """Give up a database."""
        name = url.partition("?")[0].split("/")[-1]
        execute(self._url, f"DROP DATABASE {name} WITH (FORCE)")

    def environment(self, url: str) -> dict[str, str]:
        """The environment of a process that has Redis and that database to itself."""
        self.redis.cli("FLUSHALL")
        settings = {
            "port": "0", "store_auto_close_schedule": NEVER, "store_open_reminder_schedule": NEVER,
        }  # fmt: skip
        variables = {f"SOLOCRON_{name.upper()}": value for name, value in settings.items()}
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


async def _start(postgres: Postgres) -> None:
    """Start it, with connections for 50 workers."""
    await postgres.start()
    await asyncio.to_thread(execute, postgres.url, "ALTER SYSTEM SET max_connections = 600")
    await postgres.down("fast")
    await postgres.up()


async def _migrate(url: str) -> None:
    database = Database(url)
    await database.migrate()
    await database.close()


@contextmanager
def world(name: str) -> Iterator[World]:
    """The servers, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) as folder:
        redis, postgres = RedisServer(Path(folder)), Postgres(Path(folder))
        try:
            redis.start()
            asyncio.run(_start(postgres))
            made = World(redis, postgres, Path(folder))
            made.prepare()
            yield made
        finally:
            asyncio.run(postgres.stop())
            redis.stop()
