"""One dedicated Redis connection for lock traffic.

Commands are joined into one write per loop turn and replies resolved in order. Lock commands must
not wait for a pooled connection behind slower traffic (a pool smaller than the number of tasks
was measured to starve some: p99 409 ms against a p50 of 1.9 ms).

After any loss, everything in flight is *unknown*: callers hold a token and ask again. The
library's own retries are off, because a blind retry of `SET NX` finds its own token and says
"held".
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from solocron.clock import Clock
from solocron.errors import LockReadOnly, LockUnavailable
from solocron.locks.session import Command, Session, name_of

log = logging.getLogger("solocron.locks")

_T = TypeVar("_T")

# "Not now", as the library's classes (which drop the word itself) or as the word in an error's
# text: at its start, or inside a script's error ("...: -OOM command not ...").
_REFUSALS = (
    BusyLoadingError, ReadOnlyError, OutOfMemoryError, ClusterDownError, MasterDownError,
)  # fmt: skip
_REFUSAL = re.compile(
    r"(?:^|[ -])(READONLY|MISCONF|OOM|LOADING|CLUSTERDOWN|MASTERDOWN|NOREPLICAS)\b"
)
REDIRECTS = (AskError, TryAgainError)  # MovedError is an AskError
_RETRY_PAUSES_S = (0.02, 0.05, 0.1, 0.2)
_STALLED = 1.5  # deadlines: a timeout noticed so late was not noticed by a running loop


class Reachability:
    """Says once that Redis is lost, and once that it is there (again): `purpose` is what for, or
    None to say nothing; `alone` is how it goes on without. Of several servers each counts.

    `lost_ms` is since when it is lost (UTC epoch ms), or None."""

    def __init__(self, purpose: str | None, clock: Clock, alone: str = "") -> None:
        self.lost_ms: float | None = None
        self._purpose = purpose
        self._clock = clock
        self._alone = alone
        self._lost: set[str] = set()
        self._ready = False

    @property
    def is_up(self) -> bool:
        """Whether the last exchange with each server worked."""
        return self._ready and not self._lost

    def works(self, server: str) -> None:
        """Commands work: connecting to a server that refuses them is no return."""
        if self._ready and not self._lost:
            return
        self.forget(server)
        if self._lost:
            return
        self._ready = True
        if self._purpose is not None:
            log.info("✅ Redis connected for %s", self._purpose)
            log.info("✅ Redis ready for %s", self._purpose)

    def fails(self, server: str, reason: str) -> None:
        """A command could not be exchanged."""
        if not self._lost:
            self.lost_ms = self._clock.now_ms()
            if self._purpose is not None:
                log.warning("Redis lost for %s: %s; %s", self._purpose, reason, self._alone)
        self._lost.add(server)

    def forget(self, server: str) -> None:
        """The server is not needed any more."""
        self._lost.discard(server)
        if not self._lost:
            self.lost_ms = None


async def within(deadline_s: float, clock: Clock, work: Callable[[], Awaitable[_T]]) -> _T:
    """Await `work()` for `deadline_s` at most; once more if it was this loop that stalled, which
    says nothing of Redis. Raises TimeoutError."""
    began = clock.monotonic()
    try:
        async with asyncio.timeout(deadline_s):
            return await work()
    except TimeoutError:
        if clock.monotonic() - began <= _STALLED * deadline_s:
            raise
    async with asyncio.timeout(deadline_s):
        return await work()


class RedisLink:
    """Commands to one server under one deadline that covers connecting and retrying.

    `connect` opens a connection to it; `deadline_s` is the longest a call may take, in s.
    `scripts` are loaded whenever a connection is made.
    """

    splits = False  # any keys may meet in one script

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        clock: Clock,
        reachability: Reachability,
        deadline_s: float = 1.0,
        scripts: Sequence[str] = (),
        server: str = "",
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._deadline_s = deadline_s
        self._scripts = tuple(scripts)
        self._server = server
        self._reachability = reachability
        self._session: Session | None = None
        self._connecting = asyncio.Lock()
        self._failure = ""  # of the last try to exchange anything

    @property
    def is_up(self) -> bool:
        """Whether the last exchange with Redis worked."""
        return self._reachability.is_up

    @property
    def lost_ms(self) -> float | None:
        """Since when no exchange worked (UTC epoch ms); None if the last one did, or none was
        tried."""
        return self._reachability.lost_ms

    async def servers(self) -> Sequence[RedisLink]:
        """The servers that hold keys: this one."""
        return (self,)

    async def call(self, *args: str | bytes | int, key: str = "") -> Any:
        """Send an idempotent command; ask again after a loss until the deadline. `key` tells a
        cluster where to send it, and is not needed here.

        Raises LockUnavailable (no answer, or an error for one) or LockReadOnly (Redis refuses
        writes); only NoScriptError passes.
        """
        session, left_s = self._session, self._deadline_s
        if session is not None and session.error is None:  # which keeps the deadline itself
            time = asyncio.get_running_loop().time
            began = time()
            try:
                reply = await session.submit(args)
                self._reachability.works(self._server)
                return reply
            except (ResponseError, BusyLoadingError) as error:
                raise self._refused(error, args, session) from None
            except (LockUnavailable, RedisError) as error:
                self._lost(name_of(error), session)
                left_s -= time() - began
                if left_s <= 0:
                    if isinstance(session.error, TimeoutError):
                        raise LockUnavailable(f"Redis gave {session.error}") from None
                    left_s = self._deadline_s  # it was this loop that stood still
        try:
            return await self._within(lambda: self.exchange(args), left_s)
        except REDIRECTS as error:
            raise _misplaced(error) from None

    async def call_all(self, commands: Sequence[Command], keys: Sequence[str] = ()) -> list[Any]:
        """As `call`, for many commands in one write; `keys`, one each, are for a cluster."""
        replies = await self._within(lambda: self.exchange_all(commands), self._deadline_s)
        for each in replies:
            if isinstance(each, REDIRECTS):
                raise _misplaced(each)
        return replies

    async def exchange_all(self, commands: Sequence[Command]) -> list[Any]:
        """As `call_all`, without the deadline; a cluster's redirections are among the replies."""

        async def submit(session: Session) -> list[Any]:
            replies = await session.submit_all(commands)
            for each in replies:
                if isinstance(each, RedisError) and not isinstance(each, REDIRECTS):
                    raise each
            return replies

        return await self._exchange(commands[0], submit)

    async def exchange(self, args: Command, asking: bool = False) -> Any:
        """As `call`, without the deadline; a cluster's redirections pass too. `asking` is for the
        node that a slot is moving to."""

        def submit(session: Session) -> asyncio.Future[Any]:
            if asking:
                session.submit(("ASKING",)).add_done_callback(_heard)
            return session.submit(args)

        return await self._exchange(args, submit)

    async def _within(self, work: Callable[[], Awaitable[_T]], left_s: float) -> _T:
        try:
            return await within(left_s, self._clock, work)
        except TimeoutError:
            why = f"; {self._failure}" if self._failure else ""
            self.timed_out()
            raise LockUnavailable(
                f"Redis gave no answer within {self._deadline_s:g} s{why}"
            ) from None

    async def _exchange(self, args: Command, submit: Callable[[Session], Awaitable[_T]]) -> _T:
        """Submit on a live session, and again after a loss, a few times."""
        attempt = 0
        while True:
            session = None
            try:
                session = await self._connected()
                reply = await submit(session)
                self._failure = ""
                self._reachability.works(self._server)
                return reply
            except REDIRECTS:
                raise
            except (ResponseError, BusyLoadingError) as error:
                raise self._refused(error, args, session) from None
            except (LockUnavailable, RedisError, OSError) as error:
                self._failure = name_of(error)
                self._lost(name_of(error), session)
                if attempt >= len(_RETRY_PAUSES_S):
                    raise LockUnavailable(f"Redis is not reachable: {name_of(error)}") from None
                await asyncio.sleep(_RETRY_PAUSES_S[attempt])
                attempt += 1

    def _refused(self, error: RedisError, args: Command, session: Session | None) -> Exception:
        """What an error for an answer comes to."""
        if isinstance(error, NoScriptError):
            return error
        if isinstance(error, REDIRECTS):
            return _misplaced(error)
        self._lost(name_of(error), session)
        if isinstance(error, _REFUSALS) or _REFUSAL.search(str(error)):
            return LockReadOnly(f"Redis refuses writes: {name_of(error)}")
        return LockUnavailable(f"Redis refuses {args[0]!s}: {name_of(error)}")

    async def _connected(self) -> Session:
        if self._session is not None and self._session.error is None:
            return self._session
        async with self._connecting:
            if self._session is not None:
                if self._session.error is None:
                    return self._session
                await self._session.close()
                self._session = None
            session = Session(await self._connect(), self._clock.monotonic(), self._deadline_s)
            self._session = session
            # One round trip; a script that could not be loaded is sent whole when it is used.
            loads = [session.submit(("SCRIPT", "LOAD", script)) for script in self._scripts]
            await asyncio.gather(*loads, return_exceptions=True)
            return session

    def timed_out(self) -> None:
        """A call found no answer within the deadline: give up the connection it waited for, but
        none that is newer than that."""
        session = self._session
        if session is None or session.since <= self._clock.monotonic() - self._deadline_s:
            self._lost(f"no answer within {self._deadline_s:g} s", session)

    def _lost(self, reason: str, session: Session | None) -> None:
        """Drop the session that failed, not one made since."""
        if session is not None:
            session.fail(ConnectionError(reason))
        self._reachability.fails(self._server, reason)

    async def close(self) -> None:
        """Close the connection. Safe to call twice; a later call connects again."""
        async with self._connecting:
            session, self._session = self._session, None
            if session is not None:
                await session.close()


def _heard(reply: asyncio.Future[Any]) -> None:
    """An error for it comes again with the command behind it."""
    if not reply.cancelled():
        reply.exception()


def _misplaced(redirection: RedisError) -> LockUnavailable:
    return LockUnavailable(
        f"Redis is a cluster ({type(redirection).__name__}): set REDIS_CLUSTER=1, or give a "
        "redis+cluster:// URL"
    )
