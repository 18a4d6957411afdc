"""The lock manager: the original system's three functions, made safe, and `hold` and `claim`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from redis.exceptions import NoScriptError

from solocron.clock import Clock, SystemClock
from solocron.errors import LockReadOnly, LockUnavailable
from solocron.locks import scripts
from solocron.locks.cluster import make_link
from solocron.locks.keys import (
    LONGEST_PAUSE_MS,
    PAUSE_MS,
    check_key,
    check_ttl,
    companions,
)
from solocron.locks.lease import Lease
from solocron.locks.listing import held
from solocron.locks.owned import Owned
from solocron.locks.renewals import Renewals
from solocron.locks.results import (
    GRANTED,
    Claim,
    Granted,
    Held,
    Survey,
    pause_text,
    read_refusal,
    read_survey,
)
from solocron.locks.session import Command
from solocron.locks.skew import SkewGuard
from solocron.locks.statistics import LockStatistics
from solocron.locks.strays import Strays

log = logging.getLogger("solocron.locks")

_T = TypeVar("_T")

_LET_GO_S = 1.0  # for those who hold a lock when the manager is closed
_NOBODYS = "cron:*"  # no job has such a name


class LockManager:
    """Locks over one Redis connection. Use as an async context manager: it renews and closes.

    `lease_ms` is the trust window: an owner silent for so long is taken over. `keep_ms` is how
    long Redis remembers the newest settled tick, `max_skew_ms` how far this server's clock may be
    ahead of Redis's. With `margin_ms`, a tick is granted only if the lock was reserved for so long
    before it (see `reserve`). `statistics` counts what became of each lock. `alone`: what becomes
    of ticks while Redis is away, for the log.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        lease_ms: int = 30_000,
        deadline_s: float = 1.0,
        keep_ms: int = 2 * 24 * 3600 * 1000,
        max_skew_ms: int = 60_000,
        margin_ms: int = 0,
        alone: str = "the ledger decides alone",
    ) -> None:
        clock = clock or SystemClock()
        self.link = make_link(
            url, clock=clock, deadline_s=deadline_s, scripts=scripts.ALL,
            purpose="distributed locks", alone=alone,
        )  # fmt: skip
        self.statistics = LockStatistics()
        self.skew = SkewGuard(clock, max_skew_ms)
        self._clock = clock
        self._lease_ms = check_ttl(lease_ms, "lease_ms")
        self._keep_ms = check_ttl(keep_ms, "keep_ms")
        self.margin_ms = margin_ms
        self._shas: dict[str, str] = {}  # of the scripts, which are few
        self._owned = Owned()
        self._background: set[asyncio.Task[Any]] = set()
        self._renewals = Renewals(
            self.script, self._together, clock=clock, statistics=self.statistics
        )
        self._strays = Strays(self._settle, self._own, clock)
        self._identity = f"{socket.gethostname()[:100]}:{os.getpid()}"

    async def __aenter__(self) -> Self:
        self._strays.closing = False
        self._renewals.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Await background releases, stop renewing, take back the leases still held, close the
        connection. Safe to call twice."""
        self._strays.closing = True
        await self._released()
        for lease in await self._renewals.close(_LET_GO_S):
            await self.release(lease)
        await self._released()
        await self.link.close()

    async def _released(self) -> None:
        while self._background:
            await asyncio.wait(self._background)

    @property
    def is_open(self) -> bool:
        """Whether leases are renewed: between entering it and leaving it."""
        return self._renewals.is_running

    @property
    def leases(self) -> int:
        """How many leases this process holds."""
        return len(self._renewals)

    def new_token(self, tick: int = -1) -> str:
        """A fresh owner token, `host:pid:uuid:tick`; the uuid tells containers apart."""
        # 128 random bits, as uuid4 has 122, for a fifth of its time.
        return f"{self._identity}:{secrets.token_hex(16)}:{tick}"

    # -- the three functions -------------------------------------------------------------

    async def acquire_lock(self, key: str, ttl_ms: float) -> bool:
        """Take the lock for `ttl_ms`, without renewal; False when another owner has it.

        Raises ConfigError for an absurd TTL, LockUnavailable when Redis gives no answer.
        """
        ttl = check_ttl(ttl_ms)
        token = self.new_token()
        answer, sent_at = await self._ask(key, token, -1, ttl, ttl)
        if answer[0] != GRANTED:
            return False
        self._owned.add(key, token, sent_at + ttl / 1000, self._clock.monotonic())
        return True

    async def release_lock(self, key: str) -> bool:
        """Free the lock taken by `acquire_lock`; False if it is gone or another's. Never raises
        for a lock that does not exist; LockUnavailable when Redis gives no answer."""
        token = self._owned.take(key)
        return token is not None and await self._settle(key, token, -1)

    async def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock. Raises LockUnavailable when Redis gives no answer."""
        return bool(await self.link.call("EXISTS", check_key(key), key=key))

    # -- leases --------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(self, key: str, ttl_ms: float) -> AsyncIterator[Lease]:
        """Hold the lock, renewed, around a body; the body is cancelled when the lease is lost.

        Raises LockNotAcquired (held), LockUnavailable, or LeaseLost out of the body.
        """
        claim = await self.claim(key, -1, check_ttl(ttl_ms))
        if isinstance(claim, Held):
            raise claim.refusal(key)
        assert isinstance(claim, Granted)
        try:
            async with claim.lease.guard():
                yield claim.lease
        finally:
            await self.release(claim.lease)

    async def claim(
        self, key: str, tick: int, ttl_ms: int, *, lease_ms: int | None = None, reserve: bool = True
    ) -> Claim:
        """Ask for one tick (UTC epoch ms) of a job in one round trip; a grant is renewed until
        `release`. `reserve`: older servers have the job, too (see `margin_ms`). A tick ahead of
        Redis's clock is `Early`. Raises LockUnavailable or LockReadOnly, which never mean "held".
        """
        ttl = check_ttl(ttl_ms)
        lease = min(ttl, check_ttl(lease_ms or self._lease_ms, "lease_ms"))
        token = self.new_token(tick)
        answer, sent_at = await self._ask(key, token, tick, ttl, lease, reserve)
        if answer[0] != GRANTED:
            return read_refusal(answer)
        granted = Lease(
            key, token, ttl_ms=ttl, lease_ms=lease, sent_at_s=sent_at, clock=self._clock
        )
        self._renewals.keep(granted)
        return Granted(granted, answer[1].decode(errors="replace"), int(answer[2]))

    async def release(self, lease: Lease, *, settle: int = -1, covers: int = -1) -> bool:
        """Free the lock, and settle the tick `settle` (-1: none) in the same script; while the
        lock is still ours, also the skipped ticks after it up to `covers`.

        False when it was no longer ours or the reply is unknown; never raises for Redis.
        Completes even if the caller is cancelled.
        """
        self._renewals.forget(lease)
        lease.close()
        if lease.released:
            return False
        lease.released = True
        return await asyncio.shield(self._own(self._release(lease, settle, covers)))

    async def _release(self, lease: Lease, settle: int, covers: int) -> bool:
        try:
            return await self._settle(lease.key, lease.token, settle, covers)
        except LockUnavailable as error:
            log.info("release of %s is unknown: %s", lease.key, error)
            return False

    async def _ask(
        self, key: str, token: str, tick: int, ttl: int, lease: int, reserve: bool = True
    ) -> tuple[list[Any], float]:
        """The CLAIM script's answer, and when (monotonic s) it was asked for."""
        sent_at, sent_ms = self._clock.monotonic(), self._clock.now_ms()
        mine = self._renewals.of(key)
        if tick < 0 and mine is not None and (left_s := mine.left_s()) > 0:  # as Redis would say
            self.statistics.claimed(key, b"held")
            return [b"held", mine.token.encode(), int(left_s * 1000)], sent_at
        beside = companions(check_key(key))
        since = (
            int(self._clock.real_ms(tick)) - self.margin_ms if reserve and self.margin_ms else ""
        )
        keys = (key, beside.alive, beside.settled, beside.paused, beside.older, beside.reserved)
        args = (token, ttl, lease, tick, self.skew.opens_ms(tick), self._keep_ms, since)
        try:
            answer = await self.script(scripts.CLAIM, keys, args)
        except LockReadOnly:  # refused, so not granted
            self.statistics.of(key).unavailable += 1
            raise
        except (asyncio.CancelledError, LockUnavailable) as error:
            # Whether it was granted is unknown: give back what may be ours.
            late = isinstance(error, LockUnavailable)
            self._strays.add(key, token, until_s=sent_at + lease / 1000, late=late)
            self.statistics.of(key).unavailable += isinstance(error, LockUnavailable)
            raise
        self.skew.compare(sent_ms, answer[-1], "Redis's")
        self.statistics.claimed(key, answer[0])
        return answer, sent_at

    async def _settle(self, key: str, token: str, tick: int = -1, covers: int = -1) -> bool:
        beside = companions(key)
        keys = (key, beside.alive, beside.settled, beside.reserved)
        args = (token, tick, covers, self._keep_ms, self.skew.opens_ms(covers))
        return bool(await self.script(scripts.SETTLE, keys, args))

    # -- what operators see --------------------------------------------------------------

    async def survey(self, keys: Sequence[str]) -> list[Survey]:
        """What Redis knows of the job of each lock key, in one round trip, also of none: whether
        Redis is there is known by it."""
        if not keys:
            await self.is_locked(_NOBODYS)
        found = await asyncio.gather(*map(self._survey, self._together(keys)))
        return [survey for group in found for survey in group]

    async def _survey(self, locks: Sequence[str]) -> list[Survey]:
        keys = [k for key in locks for k in (check_key(key), *companions(key)[:4])]
        sent_ms = self._clock.now_ms()
        *rows, now_ms = await self.script(scripts.SURVEY, keys, [self._lease_ms])
        self.skew.compare(sent_ms, now_ms, "Redis's")
        return [read_survey(row) for row in rows]

    async def reserve(self, jobs: Sequence[tuple[str, int, int]], reserved_ms: int) -> list[bool]:
        """Keep each lock from older servers for `reserved_ms`, from a moment on that is `margin_ms`
        off any tick; whether each is. A job is its lock key and the ticks before and after now."""
        groups = self._together(jobs)
        found = await asyncio.gather(*(self._reserve(each, reserved_ms) for each in groups))
        return [reserved for group in found for reserved in group]

    async def _reserve(self, jobs: Sequence[tuple[str, int, int]], reserved_ms: int) -> list[bool]:
        keys: list[str] = []
        args: list[int] = []
        for key, last, following in jobs:
            beside = companions(check_key(key))
            keys += (key, beside.reserved, beside.settled)
            args += (*(int(self._clock.real_ms(tick)) for tick in (last, following)), last)
        times = (self.margin_ms, reserved_ms, self._keep_ms)
        return [bool(each) for each in await self.script(scripts.RESERVE, keys, [*args, *times])]

    async def inspect(self, key: str) -> Survey:
        """As `survey`, of one job and without leaving a trace: `look` is False."""
        beside = companions(check_key(key))
        commands: list[Command] = [
            ("GET", key), ("PTTL", key), ("EXISTS", beside.alive), ("GET", beside.settled),
            ("GET", beside.paused), ("PTTL", beside.paused),
        ]  # fmt: skip
        row = await self.link.call_all(commands, [key] * len(commands))
        return read_survey([b"" if each is None else each for each in row] + [0])

    def _together(self, items: Sequence[_T]) -> Sequence[Sequence[_T]]:
        """What one script may take: all, but on a cluster one job's keys."""
        return [[each] for each in items] if self.link.splits else [items] if items else []

    async def locks(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The locks now held (at most `limit`): key, owner, ttl_ms, ours (this process's)."""
        found = await held(await self.link.servers(), limit)
        return [
            {
                "key": key.decode(errors="replace"), "owner": owner[:300], "ttl_ms": ttl_ms,
                "ours": owner in self._renewals or owner in self._owned,
            }
            for key, (owner, ttl_ms) in sorted(found.items())[:limit]
        ]  # fmt: skip

    async def unlock(self, key: str) -> bool:
        """Delete a lock whoever holds it (an operator's act); its owner's lease is lost."""
        beside = companions(check_key(key))
        return bool(await self.link.call("DEL", key, beside.alive, beside.reserved, key=key))

    async def pause(self, key: str, *, ttl_ms: int = PAUSE_MS, by: str = "") -> int:
        """Let no tick of the job be claimed for `ttl_ms` (unless told 7 days, at most 30), in the
        name of `by`; until when, UTC epoch ms. A pause before is replaced."""
        ttl = check_ttl(ttl_ms, at_most_ms=LONGEST_PAUSE_MS)
        now_ms = int(self._clock.now_ms())
        text = pause_text(by, now_ms)
        await self.link.call("SET", companions(check_key(key)).paused, text, "PX", ttl, key=key)
        return now_ms + ttl

    async def resume(self, key: str) -> bool:
        """End a pause; False when there was none."""
        return bool(await self.link.call("DEL", companions(check_key(key)).paused, key=key))

    # -- plumbing ------------------------------------------------------------------------

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run a script over this connection: one that may be run twice, on keys of one slot.
        Raises LockUnavailable or LockReadOnly."""
        sha = self._shas.get(script)
        if sha is None:
            sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            self._shas[script] = sha
        try:
            return await self.link.call("EVALSHA", sha, len(keys), *keys, *args, key=keys[0])
        except NoScriptError:  # SCRIPT FLUSH or a restart since the connection was made
            return await self.link.call("EVAL", script, len(keys), *keys, *args, key=keys[0])
