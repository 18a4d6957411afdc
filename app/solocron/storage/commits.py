"""When a transaction that is not ours is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection


def when_committing(connection: AsyncConnection, call: Callable[[], None]) -> None:
    """Call it once, just before the connection's transaction is committed: whether it then was is
    for the table to say. After a rollback it is called at the next commit, if there is one."""

    def committing(_: Any) -> None:
        call()

    event.listen(connection.sync_connection, "commit", committing, once=True)
