"""What a job's body is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import StorageUnavailable
from solocron.ledger import Ledger, RunKey
from solocron.locks.lease import Lease
from solocron.storage.patience import held

_TURN_S = 5.0


class Notify(Protocol):
    """Writes a store's next notification in the connection's transaction; its seq."""

    async def __call__(
        self, store_id: str, type_: str, data: Mapping[str, Any], connection: AsyncConnection
    ) -> int: ...


class RunLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the run's fields behind each line."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the run's fields with those of the call."""
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


class Run:
    """One attempt of one tick. `fallback` marks a run decided by the ledger without Redis;
    `turn` is held by whoever has the run's row in the ledger."""

    def __init__(
        self, key: RunKey, *, ledger: Ledger, lease: Lease, fallback: bool,
        notify: Notify | None = None,
    ) -> None:  # fmt: skip
        self.key = key
        self.lease = lease
        self.fallback = fallback
        self.turn = asyncio.Lock()
        self._ledger = ledger
        self._notify = notify

    @property
    def job(self) -> str:
        """The job's name."""
        return self.key.job

    @property
    def tick(self) -> int:
        """The nominal time, UTC epoch ms."""
        return self.key.tick

    @property
    def attempt(self) -> int:
        """1, 2, ...: the fencing token."""
        return self.key.attempt

    @property
    def log(self) -> RunLog:
        """A logger that puts job, tick and attempt behind each line."""
        fields = {"job": self.job, "tick": self.tick, "attempt": self.attempt}
        return RunLog(logging.getLogger("solocron.job"), fields)

    def ensure_leased(self) -> None:
        """Raise LeaseLost unless this server may still work on the tick."""
        self.lease.ensure()

    async def notify(
        self, connection: AsyncConnection, store_id: str, type: str, data: Mapping[str, Any]
    ) -> int:
        """Write a notification of one's own in the transaction that `transaction` gave, which is
        published once that is committed; its seq. `type` is a CloudEvents type that does not begin
        with `store.`, `data` at most 16 KiB of JSON. Change first and notify last.

        Raises InvalidInput (of an unknown store, too) or StorageUnavailable.
        """
        if self._notify is None:
            raise StorageUnavailable("notifications are kept in a database, and there is none")
        return await self._notify(store_id, type, data, connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A database transaction that exists only while this attempt is current; a run has one at
        a time, and another waits up to 5 s for it.

        When the reply to its commit is lost the ledger is asked, for as long as the lease lasts:
        an end without an error was committed. Raises StaleAttempt, LeaseLost or, and then nothing
        was written, StorageUnavailable.
        """
        self.ensure_leased()
        turn = held(
            self.turn, _TURN_S,
            f"another transaction of {self.job} tick {self.tick} is open for {_TURN_S:.0f} s: "
            "end it first, or use its connection",
        )  # fmt: skip
        async with self._ledger.room(), turn, self._ledger.fenced(self.key) as connection:
            yield connection
