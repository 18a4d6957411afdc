"""The lock manager: the original system's three functions, made safe, and `hold` and `claim`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import socket
import uuid
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from redis.exceptions import NoScriptError, ResponseError

from solocron.clock import Clock
from solocron.errors import ConfigError, LockNotAcquired, LockUnavailable
from solocron.locks import scripts
from solocron.locks.lease import Lease
from solocron.locks.link import RedisLink

log = logging.getLogger("solocron.locks")

MAX_TTL_MS = 7 * 24 * 3600 * 1000
MAX_KEY = 200
_GIVE_BACK_PAUSE_S = 0.25


@dataclass(frozen=True)
class Granted:
    """The lock is ours. `previous_owner` is the crashed owner it was taken over from, or '';
    `settled` the newest settled tick (UTC epoch ms), or -1."""

    lease: Lease
    previous_owner: str = ""
    settled: int = -1

    @property
    def crashed_tick(self) -> int:
        """The tick the crashed owner was running (UTC epoch ms), or -1."""
        return int(self.previous_owner.rpartition(":")[2]) if self.previous_owner else -1


@dataclass(frozen=True)
class Held:
    """Another owner has it, for at most `ttl_ms` more."""

    owner: str
    ttl_ms: int

    @property
    def tick(self) -> int | None:
        """The tick the owner runs (UTC epoch ms); None for an owner in another form."""
        last = self.owner.rpartition(":")[2]
        return int(last) if last.isdigit() and len(last) < 16 else None


@dataclass(frozen=True)
class Done:
    """The tick, or a later one, is settled: `settled` is the newest (UTC epoch ms)."""

    settled: int


@dataclass(frozen=True)
class Paused:
    """An operator paused the job."""


Claim = Granted | Held | Done | Paused


@dataclass(frozen=True)
class Survey:
    """What Redis knows of one job. `settled` is the newest settled tick, or None."""

    owner: str
    ttl_ms: int
    alive: bool
    settled: int | None
    schedule: str
    paused: bool


def check_ttl(ttl_ms: float, name: str = "ttl_ms") -> int:
    """`ttl_ms` as a whole number of ms; ConfigError (a ValueError) for anything absurd."""
    if isinstance(ttl_ms, bool) or not isinstance(ttl_ms, int | float) or math.isnan(ttl_ms):
        raise ConfigError(f"{name} is {ttl_ms!r}: give a number of ms")
    if not 1 <= ttl_ms <= MAX_TTL_MS:
        raise ConfigError(f"{name} is {ttl_ms!r}: give 1 to {MAX_TTL_MS} ms (7 days)")
    return int(ttl_ms)


def companions(key: str) -> tuple[str, str, str, str]:
    """The keys beside a lock: alive, settled, schedule, paused (same cluster slot)."""
    return (
        f"{{{key}}}:alive", f"{{{key}}}:settled", f"{{{key}}}:schedule", f"{{{key}}}:paused",
    )  # fmt: skip


class LockManager:
    """Locks over one Redis connection. Use as an async context manager: it renews and closes.

    `lease_ms` is the trust window: an owner silent for so long is taken over. `keep_ms` is how
    long Redis remembers the newest settled tick.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        lease_ms: int = 30_000,
        deadline_s: float = 1.0,
        keep_ms: int = 2 * 24 * 3600 * 1000,
    ) -> None:
        self.link = RedisLink(url, deadline_s=deadline_s, scripts=scripts.ALL)
        self._clock = clock
        self._lease_ms = check_ttl(lease_ms, "lease_ms")
        self._keep_ms = keep_ms
        self._leases: dict[str, Lease] = {}
        self._owned: dict[str, list[tuple[str, weakref.ref[asyncio.Task[Any]] | None]]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._identity = f"{socket.gethostname()[:100]}:{os.getpid()}"
        self._renewer: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._closing = False
        if self._renewer is None:
            self._renewer = asyncio.create_task(self._renew_forever(), name="lease-renewal")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Await background releases, stop renewing, close the connection. Safe to call twice."""
        self._closing = True
        if self._background:
            await asyncio.wait(self._background)
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.gather(self._renewer, return_exceptions=True)
            self._renewer = None
        await self.link.close()

    @property
    def leases(self) -> int:
        """How many leases this process holds."""
        return len(self._leases)

    def new_token(self, tick: int = -1) -> str:
        """A fresh owner token, `host:pid:uuid:tick`; the uuid tells containers apart."""
        return f"{self._identity}:{uuid.uuid4().hex}:{tick}"

    # -- the three functions -------------------------------------------------------------

    async def acquire_lock(self, key: str, ttl_ms: float) -> bool:
        """Take the lock for `ttl_ms`, without renewal; False when another owner has it.

        Raises ConfigError for an absurd TTL, LockUnavailable when Redis gives no answer.
        """
        ttl = check_ttl(ttl_ms)
        token = self.new_token()
        claim = await self._claim(key, token, -1, ttl, ttl)
        if not isinstance(claim, Granted):
            return False
        claim.lease.close()
        task = asyncio.current_task()
        owner = (token, weakref.ref(task) if task else None)
        self._owned.setdefault(key, []).append(owner)
        return True

    async def release_lock(self, key: str) -> bool:
        """Free the lock taken by `acquire_lock`; False if it is gone or another's. Never raises
        for a lock that does not exist; LockUnavailable when Redis gives no answer."""
        token = self._forget(key)
        return token is not None and await self._settle(key, token, -1)

    async def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock. Raises LockUnavailable when Redis gives no answer."""
        return bool(await self.link.call("EXISTS", check_key(key)))

    def _forget(self, key: str) -> str | None:
        """The token this task took for the key; else the newest one of this process."""
        owned = self._owned.get(key)
        if not owned:
            return None
        task = asyncio.current_task()
        mine = [pair for pair in owned if pair[1] is not None and pair[1]() is task]
        pair = (mine or owned)[-1]
        owned.remove(pair)
        if not owned:
            del self._owned[key]
        return pair[0]

    # -- leases --------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(self, key: str, ttl_ms: float) -> AsyncIterator[Lease]:
        """Hold the lock, renewed, around a body; the body is cancelled when the lease is lost.

        Raises LockNotAcquired (held), LockUnavailable, or LeaseLost out of the body.
        """
        ttl = check_ttl(ttl_ms)
        claim = await self._claim(key, self.new_token(), -1, ttl, min(ttl, self._lease_ms))
        if isinstance(claim, Held):
            raise LockNotAcquired(f"{key} is held by {claim.owner} for {claim.ttl_ms} ms more")
        assert isinstance(claim, Granted)
        self._keep(claim.lease)
        try:
            async with claim.lease.guard():
                yield claim.lease
        finally:
            await self.release(claim.lease)

    async def claim(
        self, key: str, tick: int, ttl_ms: int, *, lease_ms: int | None = None
    ) -> Claim:
        """Ask for one tick (UTC epoch ms) of a job in one round trip; a grant is renewed until
        `release`. Raises LockUnavailable or LockReadOnly, which never mean "held"."""
        ttl = check_ttl(ttl_ms)
        lease = min(ttl, lease_ms or self._lease_ms)
        claim = await self._claim(key, self.new_token(tick), tick, ttl, lease)
        if isinstance(claim, Granted):
            self._keep(claim.lease)
        return claim

    async def release(self, lease: Lease, *, settle: int = -1) -> bool:
        """Free the lock, and settle the tick `settle` (-1: none) in the same script.

        False when it was no longer ours or the reply is unknown; never raises for Redis.
        Completes even if the caller is cancelled.
        """
        self._leases.pop(lease.token, None)
        lease.close()
        return await asyncio.shield(self._own(self._release(lease, settle)))

    async def _release(self, lease: Lease, settle: int) -> bool:
        try:
            return await self._settle(lease.key, lease.token, settle)
        except LockUnavailable as error:
            log.info("release of %s is unknown: %s", lease.key, error)
            return False

    async def _claim(self, key: str, token: str, tick: int, ttl: int, lease: int) -> Claim:
        alive, settled, _, paused = companions(check_key(key))
        sent_at = self._clock.monotonic()
        try:
            answer = await self._script(
                scripts.CLAIM, (key, alive, settled, paused), (token, ttl, lease, tick)
            )
        except (asyncio.CancelledError, LockUnavailable):
            # Whether it was granted is unknown: give back what may be ours.
            self._own(self._give_back(key, token, sent_at + lease / 1000))
            raise
        word, text, number = answer[0].decode(), answer[1].decode(errors="replace"), int(answer[2])
        if word == "held":
            return Held(text, number)
        if word == "done":
            return Done(int(text))
        if word == "paused":
            return Paused()
        granted = Lease(
            key, token, ttl_ms=ttl, lease_ms=lease, sent_at_s=sent_at, clock=self._clock
        )
        return Granted(granted, text, number)

    async def _give_back(self, key: str, token: str, until_s: float) -> None:
        """Release what may have been granted, for as long as its liveness key could live."""
        while True:
            try:
                await self._settle(key, token, -1)
                return
            except LockUnavailable:
                if self._closing or self._clock.monotonic() >= until_s:
                    return
                await asyncio.sleep(_GIVE_BACK_PAUSE_S)

    async def _settle(self, key: str, token: str, tick: int) -> bool:
        alive, settled, _, _ = companions(check_key(key))
        args = (token, tick, self._keep_ms)
        return bool(await self._script(scripts.SETTLE, (key, alive, settled), args))

    async def settle(self, key: str, tick: int) -> None:
        """Note a tick as settled without holding the lock (a fallback run after Redis's return)."""
        await self._settle(key, "", tick)

    # -- renewal -------------------------------------------------------------------------

    def _keep(self, lease: Lease) -> None:
        self._leases[lease.token] = lease
        self._changed.set()

    async def _renew_forever(self) -> None:
        while True:
            self._changed.clear()
            for lease in [each for each in self._leases.values() if each.lost.is_set()]:
                self._leases.pop(lease.token, None)
            if not self._leases:
                await self._changed.wait()
                continue
            now = self._clock.monotonic()
            due = min(lease.next_renewal_s for lease in self._leases.values())
            if due > now:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), due - now)
                continue
            await self._renew(list(self._leases.values()))

    async def _renew(self, leases: Sequence[Lease]) -> None:
        """Renew every lease in one script; one that is no longer ours is lost."""
        keys = [k for each in leases for k in (each.key, companions(each.key)[0])]
        args = [a for each in leases for a in (each.token, each.ttl_ms, each.lease_ms)]
        sent_at = self._clock.monotonic()
        planned = min(each.next_renewal_s for each in leases)
        for each in leases:  # absolute schedule: a slow reply does not move the next renewal
            each.next_renewal_s = (
                max(planned, sent_at - each.lease_ms / 3000) + each.lease_ms / 3000
            )
        try:
            answers = await self._script(scripts.RENEW, keys, args)
        except (LockUnavailable, ResponseError) as error:
            log.debug("leases not renewed: %s", error)
            return
        for each, ours in zip(leases, answers, strict=True):
            if each.token not in self._leases:
                continue  # released while this was on its way
            if ours:
                each.renewed(sent_at)
            else:
                each.lose("another owner has the lock, or it was deleted")

    # -- what operators see --------------------------------------------------------------

    async def survey(self, jobs: Sequence[tuple[str, str]]) -> list[Survey]:
        """What Redis knows of each (lock key, schedule), in one round trip."""
        if not jobs:
            return []
        keys = [k for key, _ in jobs for k in (check_key(key), *companions(key))]
        args = [schedule for _, schedule in jobs]
        rows = await self._script(scripts.SURVEY, keys, [*args, 3_600_000])
        return [_survey(row) for row in rows]

    async def locks(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The locks now held (at most `limit`): key, owner, ttl_ms, ours."""
        found: list[dict[str, Any]] = []
        cursor = 0
        while True:
            cursor_text, keys = await self.link.call(
                "SCAN", cursor, "MATCH", "cron:*", "COUNT", 500
            )
            for key in keys[: limit - len(found)]:
                name = key.decode(errors="replace")
                owner = ((await self.link.call("GET", key)) or b"").decode(errors="replace")[:300]
                ttl = int(await self.link.call("PTTL", key))
                mine = owner.startswith(self._identity)
                found.append({"key": name, "owner": owner, "ttl_ms": ttl, "ours": mine})
            cursor = int(cursor_text)
            if cursor == 0 or len(found) >= limit:
                return sorted(found, key=lambda lock: str(lock["key"]))

    async def unlock(self, key: str) -> bool:
        """Delete a lock whoever holds it (an operator's act); its owner's lease is lost."""
        return bool(await self.link.call("DEL", check_key(key), companions(key)[0]))

    async def pause(self, key: str, *, ttl_ms: int = 30 * 24 * 3600 * 1000) -> None:
        """Let no tick of the job be claimed for `ttl_ms` (30 days unless told)."""
        await self.link.call("SET", companions(check_key(key))[3], "1", "PX", ttl_ms)

    async def resume(self, key: str) -> bool:
        """End a pause; False when there was none."""
        return bool(await self.link.call("DEL", companions(check_key(key))[3]))

    # -- plumbing ------------------------------------------------------------------------

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self.link.call("EVALSHA", sha, len(keys), *keys, *args)
        except NoScriptError:  # SCRIPT FLUSH or a restart since the connection was made
            return await self.link.call("EVAL", script, len(keys), *keys, *args)


def check_key(key: str) -> str:
    """`key` if it is a usable lock key, else ConfigError."""
    if not key or len(key) > MAX_KEY or any(c in "{}" or c.isspace() for c in key):
        raise ConfigError(
            f"lock key {key[:MAX_KEY]!r}: give 1 to {MAX_KEY} characters without spaces or braces"
        )
    return key


def _survey(row: list[Any]) -> Survey:
    return Survey(
        owner=row[0].decode(errors="replace"),
        ttl_ms=int(row[1]),
        alive=bool(row[2]),
        settled=int(row[3]) if row[3] else None,
        schedule=row[4].decode(errors="replace"),
        paused=bool(row[5]),
    )
