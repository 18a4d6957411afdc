"""What a job's body is given."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, MutableMapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.errors import LeaseLost, StorageUnavailable
from solocron.ledger import Ledger, RunKey
from solocron.locks.lease import Lease
from solocron.storage.patience import held

_TURN_S = 5.0
_MAX_NOTE = 200
_MAX_DONE = 10**15

_T = TypeVar("_T")


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
    `turn` is held by whoever has the run's row in the ledger. Made on the event loop; what a body
    in a thread may use of it says so."""

    def __init__(
        self, key: RunKey, *, ledger: Ledger, lease: Lease, fallback: bool, params: str = "{}",
        notify: Notify | None = None,
    ) -> None:  # fmt: skip
        self.key = key
        self.lease = lease
        self.fallback = fallback
        self.turn = asyncio.Lock()
        self.calls: set[asyncio.Task[Any]] = set()
        self._ledger = ledger
        self._notify = notify
        self._params = params
        self._progress: str | None = None
        self._told: str | None = None
        self._let_go = ""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    @property
    def job(self) -> str:
        """The job's name."""
        return self.key.job

    @property
    def tick(self) -> int:
        """The nominal time, UTC epoch ms; of a run by hand when it was asked for."""
        return self.key.tick

    @property
    def attempt(self) -> int:
        """1, 2, ...: the fencing token."""
        return self.key.attempt

    @property
    def params(self) -> Mapping[str, Any]:
        """The job's parameters, of a run by hand as they were given; the same in each attempt. Read
        only. Works in a thread."""
        found: dict[str, Any] = json.loads(self._params)
        return MappingProxyType(found)

    @property
    def log(self) -> RunLog:
        """A logger that puts job, tick and attempt behind each line. Works in a thread."""
        fields = {"job": self.job, "tick": self.tick, "attempt": self.attempt}
        return RunLog(logging.getLogger("solocron.job"), fields)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the run is, such as 40 of 100, for operators to see. Costs nothing: the
        newest word goes with the next heartbeat, each third of the lease. A note is cut off at 200
        characters. Works in a thread. Raises ValueError for what is no number from 0 to 10**15."""
        for name, number in (("done", done), ("total", total)):
            if number is not None and not 0 <= number <= _MAX_DONE:
                raise ValueError(f"progress: {name} is {number!r}: give a number from 0 to 10**15")
        self._progress = json.dumps({"done": done, "total": total, "note": str(note)[:_MAX_NOTE]})

    def news(self) -> str | None:
        """The progress (JSON) that was not told of, if any; see `told`."""
        return self._progress if self._progress != self._told else None

    def told(self, progress: str | None) -> None:
        """The ledger has this progress."""
        if progress is not None:
            self._told = progress

    def ensure_leased(self) -> None:
        """Raise LeaseLost unless this server may still work on the tick. Works in a thread: call it
        there between the steps of the work, for a thread cannot be ended from outside."""
        if threading.get_ident() == self._thread:
            self.lease.ensure()
        elif self._let_go or not self.lease.is_trusted:
            raise LeaseLost(f"lease on {self.lease.key} lost: {self._let_go or self.lease.reason}")

    def let_go(self, why: str) -> None:
        """Have a body in a thread stop: `ensure_leased` and `call` raise LeaseLost there."""
        self._let_go = why

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """From a body in a thread: run a coroutine on the event loop, such as one that opens
        `transaction()`, and wait for it. Raises what it raises, and LeaseLost."""
        try:
            if threading.get_ident() == self._thread:
                raise RuntimeError("run.call is for bodies in threads: on the event loop, await it")
            self.ensure_leased()
        except BaseException:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(self._called(work), self._loop).result()

    async def _called(self, work: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self.calls.add(task)
        try:
            return await work
        finally:
            self.calls.discard(task)

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
