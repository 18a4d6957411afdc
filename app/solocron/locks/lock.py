"""A lock for anything, not only for jobs: one holder among all servers, renewed while it works."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import AsyncExitStack
from types import TracebackType

from solocron.errors import ConfigError
from solocron.locks.keys import check_key, check_ttl
from solocron.locks.lease import Lease
from solocron.locks.manager import LockManager
from solocron.locks.results import Granted, Held

_AGAIN_S = 0.1
_LONGEST_WAIT_S = 86_400.0


class Lock:
    """The lock `key`, whose life is `ttl_ms`, renewed until it is released. `async with` waits for
    it for up to `wait_s`, gives its lease, and cancels the enclosed code when that is lost, with
    LeaseLost in its place. Held once at a time; another task makes a lock of its own.

    Raises ConfigError for a key, a TTL or a wait that cannot be.
    """

    def __init__(self, locks: LockManager, key: str, ttl_ms: float, *, wait_s: float = 0.0) -> None:
        self.key = check_key(key)
        self._locks = locks
        self._ttl_ms = check_ttl(ttl_ms, f"ttl of lock {key!r}")
        self._wait_s = _checked(key, wait_s)
        self._lease: Lease | None = None
        self._guard = AsyncExitStack()

    @property
    def lease(self) -> Lease | None:
        """The lease while it is held here."""
        return self._lease

    async def acquire(self, wait_s: float = 0.0) -> Lease:
        """Take the lock, waiting for it for up to `wait_s`; its lease, whose `ensure` says whether
        it is still ours. Raises LockNotAcquired, or LockUnavailable when Redis gives no answer."""
        if not self._locks.is_open:
            raise ConfigError(
                f"lock {self.key!r}: start the service, which renews its locks, first"
            )
        if self._lease is not None:
            raise ConfigError(f"lock {self.key!r} is held here: make another for another task")
        loop = asyncio.get_running_loop()
        until = loop.time() + _checked(self.key, wait_s)
        while True:
            claim = await self._locks.claim(self.key, -1, self._ttl_ms)
            if isinstance(claim, Granted):
                self._lease = claim.lease
                return claim.lease
            left = until - loop.time()
            if left <= 0:
                assert isinstance(claim, Held)
                raise claim.refusal(self.key)
            await asyncio.sleep(min(left, _AGAIN_S * random.uniform(0.5, 1.5)))

    async def release(self) -> bool:
        """Free the lock; False when it was not held, or no longer ours, or the reply is unknown."""
        lease, self._lease = self._lease, None
        return lease is not None and await self._locks.release(lease)

    async def __aenter__(self) -> Lease:
        lease = await self.acquire(self._wait_s)
        try:
            return await self._guard.enter_async_context(lease.guard())
        except BaseException:
            await self.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:  # fmt: skip
        try:
            return await self._guard.__aexit__(kind, error, trace)
        finally:
            await self.release()


def _checked(key: str, wait_s: float) -> float:
    if isinstance(wait_s, bool) or not 0 <= wait_s <= _LONGEST_WAIT_S or math.isnan(wait_s):
        raise ConfigError(f"wait for lock {key!r} is {wait_s!r} s: give 0 to 86400 s")
    return float(wait_s)
