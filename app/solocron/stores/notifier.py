"""A host's own notifications: written like solocron's, and published once they are committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.clock import Clock
from solocron.notifications.relay import Relay
from solocron.storage.engine import Database
from solocron.stores.service import StoreService


class Notifier:
    """Called with a store's id, a type and data: writes the store's next notification, and returns
    its seq.

    With a `connection` it is part of that transaction of solocron's database: committed with it,
    or never there. Change first and notify last: the store's next notification waits until the
    transaction ends. Without one it has a transaction of its own. Raises InvalidInput (UnknownStore
    among them) or StorageUnavailable.
    """

    def __init__(
        self, stores: StoreService, database: Database, relay: Relay, clock: Clock
    ) -> None:
        self._stores = stores
        self._database = database
        self._relay = relay
        self._clock = clock

    async def __call__(
        self, store_id: str, type_: str, data: Mapping[str, Any],
        connection: AsyncConnection | None = None,
    ) -> int:  # fmt: skip
        now_ms = int(self._clock.now_ms())
        if connection is not None:
            row = await self._stores.notify(connection, store_id, type_, data, now_ms)
            self._relay.publish_when_committed(connection, row)
            return row.seq
        async with self._database.begin() as own:
            row = await self._stores.notify(own, store_id, type_, data, now_ms)
        self._relay.publish([row])
        return row.seq
