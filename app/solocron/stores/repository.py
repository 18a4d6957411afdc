"""What is asked of stores, wherever they are kept: solocron's own table, a host's, or an adapter.

A repository says which stores there are and changes whether one is open; it tells nobody. The
notifications, and the numbers they have, are `stores.service`'s, which writes them in the same
transaction. `solocron.testing.StoreRepositoryContract` has a test for each promise made here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from solocron.errors import InvalidInput
from solocron.stores.hours import HoursKey
from solocron.stores.model import Store


class UnknownStore(InvalidInput):
    """No store has that id."""


class StoresReadOnly(InvalidInput):
    """Stores are created and described elsewhere; the message says where."""


class StoreName(NamedTuple):
    """A store that was changed, or is due."""

    id: str
    name: str


class StoreRepository(Protocol):
    """Reads stores, and opens and closes them. Every method may raise StorageUnavailable.

    Where a `connection` is given (of solocron's database, in a write transaction) all is read and
    written in that transaction: rolled back, nothing has changed. Whoever locks several stores
    does so in the order of their ids. A store's `notification_seq` is not the repository's: it is
    left at 0.
    """

    async def check(self) -> None:
        """Raise ConfigError, naming what to change, if the stores cannot be used as they are kept.
        Called before anything else."""

    async def get_many(
        self, store_ids: Collection[str], connection: AsyncConnection | None = None
    ) -> Mapping[str, Store]:
        """Those of the stores that exist, by id; up to 1,000 are asked for at a time."""

    async def page(
        self,
        after: str | None = None,
        limit: int = 100,
        is_open: bool | None = None,
        ids: Collection[str] | None = None,
    ) -> Sequence[Store]:
        """Up to `limit` stores in the order of their ids, those past `after` and among `ids`
        (None: all); the rest follow the last."""

    async def put(self, store: Store, now_ms: int) -> bool:
        """Create the store (True), or change what is given of it: never whether it is open. Raises
        StoresReadOnly where that is not done here."""

    async def hours_keys(self, is_open: bool) -> Mapping[HoursKey, int]:
        """Each distinct key among the open (or the closed) stores, and how many share it. A store
        without hours is left out."""

    async def close_due(
        self, connection: AsyncConnection, keys: Sequence[HoursKey], *, now_ms: int, limit: int
    ) -> Sequence[StoreName]:
        """Close up to `limit` open stores with one of `keys`, and return them; fewer: there are no
        more. One that another transaction closes meanwhile is not among them."""

    async def closed(
        self,
        connection: AsyncConnection,
        keys: Sequence[HoursKey],
        *,
        after: str | None,
        limit: int,
    ) -> Sequence[StoreName]:
        """Up to `limit` closed stores with one of `keys`, those past `after` (None: all), in the
        order of their ids; fewer: there are no more. None of them is opened by another
        transaction before this one ends."""

    async def set_open(
        self, connection: AsyncConnection, store_id: str, is_open: bool, now_ms: int
    ) -> StoreName | None:
        """Open or close one store; None if it was so already, or does not exist."""


@runtime_checkable
class LooksAhead(Protocol):
    """What a repository may have besides, to close many stores in less time: they are found in one
    look for many batches, and closed in the order of their ids, which is about the order in which
    they lie on the disk. By their hours each would be on a page of its own."""

    async def look_ahead(
        self, keys: Sequence[HoursKey], *, after: str | None, limit: int
    ) -> Mapping[str, HoursKey]:
        """Up to `limit` open stores with one of `keys`, those past `after` (None: all), in the
        order of their ids, each with its key; fewer: there are no more."""

    async def closing(
        self, connection: AsyncConnection, due: Mapping[str, HoursKey], *, now_ms: int
    ) -> ReturningUpdate[Any]:
        """A statement that closes those of the stores that are open and have that key still, and
        returns their `id` and `name`. One that another transaction closes meanwhile is not among
        them."""
