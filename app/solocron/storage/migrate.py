"""Schema migrations: Alembic, run over a connection the caller already holds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from solocron.errors import StorageUnavailable


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The revision this release needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def upgrade(connection: Connection) -> None:
    """Apply what is missing, inside the caller's transaction. Raises StorageUnavailable for a
    schema this release does not know."""
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageUnavailable(
            f"database: its schema is not of this release ({error}): install the newer release"
        ) from None
