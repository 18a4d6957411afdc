"""Schema migrations: Alembic, run over a connection the caller already holds.

Alembic is imported when it is needed: most commands never do, and it takes a tenth of a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import StorageUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

_TALKING = ("alembic.runtime.plugins", "alembic.runtime.migration")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Alembic says at each import and start, which a host's log would have, but not
    that a migration is run, nor warnings. Around its import, too."""

    def is_news(record: logging.LogRecord) -> bool:  # one for each call: they may overlap
        return record.levelno > logging.INFO or str(record.msg).startswith("Running")

    loggers = [logging.getLogger(name) for name in _TALKING]
    for each in loggers:
        each.addFilter(is_news)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(is_news)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The revision this release needs."""
    with _quiet():
        from alembic.script import ScriptDirectory

        head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


async def upgrade(connection: AsyncConnection) -> None:
    """Apply what is missing, inside the caller's transaction. Raises StorageUnavailable for a
    schema this release does not know."""
    try:
        await connection.run_sync(_upgrade)
    except PendingRollbackError:  # Alembic tidied up where a cancellation had cut a statement off
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise


def _upgrade(connection: Connection) -> None:
    with _quiet():
        from alembic import command
        from alembic.util import CommandError

        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StorageUnavailable(
                f"database: its schema is not of this release ({error}): install the newer release"
            ) from None
