"""The leases this process holds, renewed until they are let go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from solocron.clock import Clock
from solocron.errors import LockUnavailable
from solocron.locks import scripts
from solocron.locks.keys import companions
from solocron.locks.lease import Lease
from solocron.locks.statistics import LockStatistics

log = logging.getLogger("solocron.locks")

Script = Callable[[str, Sequence[str], Sequence[str | int]], Awaitable[Any]]
Together = Callable[[Sequence[Lease]], Sequence[Sequence[Lease]]]


class Renewals:
    """Renews every lease it keeps in one `script`, or in one for each group that may be in it
    (`together`), from `start` to `close`."""

    def __init__(
        self, script: Script, together: Together, *, clock: Clock, statistics: LockStatistics
    ) -> None:
        self._script = script
        self._together = together
        self._clock = clock
        self._statistics = statistics
        self._leases: dict[str, Lease] = {}  # by token
        self._by_key: dict[str, Lease] = {}
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether leases are renewed."""
        return self._task is not None

    def start(self) -> None:
        """Renew from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._renew_forever(), name="lease-renewal")

    async def close(self, within_s: float) -> list[Lease]:
        """Stop renewing. Leases still held are lost, and who holds them has so long to let them
        go; those that nobody did."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for lease in self:
            lease.lose("its lock manager was closed")
        if self._leases:
            self._empty.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._empty.wait()
        return list(self)

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def __contains__(self, token: str) -> bool:
        return token in self._leases

    def of(self, key: str) -> Lease | None:
        """The lease on a lock that is held here."""
        return self._by_key.get(key)

    def keep(self, lease: Lease) -> None:
        """Renew it until it is forgotten or lost."""
        self._leases[lease.token] = self._by_key[lease.key] = lease
        self._changed.set()

    def forget(self, lease: Lease) -> None:
        """It is let go, or lost."""
        if self._by_key.get(lease.key) is lease:
            del self._by_key[lease.key]
        if self._leases.pop(lease.token, None) is not None:
            held_s = self._clock.monotonic() - lease.since_s
            self._statistics.released(lease.key, held_s, lost=lease.lost.is_set())
        if not self._leases:
            self._empty.set()

    async def _renew_forever(self) -> None:
        while True:
            self._changed.clear()
            for lease in self:
                if lease.lost.is_set():
                    self.forget(lease)
            if not self._leases:
                await self._changed.wait()
                continue
            due = min(lease.next_renewal_s for lease in self)
            wait = due - self._clock.monotonic()
            if wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                continue
            try:
                await asyncio.gather(*map(self.renew, self._together(list(self))))
            except Exception:  # the leases end by their deadlines; the next round tries again
                log.exception("renewal failed")

    async def renew(self, leases: Sequence[Lease]) -> None:
        """Renew leases in one script; one that is no longer ours is lost."""
        keys = [k for each in leases for k in (each.key, companions(each.key).alive)]
        args = [a for each in leases for a in (each.token, each.ttl_ms, each.lease_ms)]
        sent_at = self._clock.monotonic()
        planned = min(each.next_renewal_s for each in leases)
        for each in leases:  # absolute schedule: a slow reply does not move the next renewal
            each.next_renewal_s = (
                max(planned, sent_at - each.lease_ms / 3000) + each.lease_ms / 3000
            )
        try:
            answers = await self._script(scripts.RENEW, keys, args)
        except LockUnavailable as error:
            log.debug("leases not renewed: %s", error)
            return
        for each, ours in zip(leases, answers, strict=True):
            if each.token not in self._leases:
                continue  # released while this was on its way
            if ours:
                each.renewed(sent_at)
                self._statistics.of(each.key).renewals += 1
            else:
                each.lose("another owner has the lock, or it was deleted")
