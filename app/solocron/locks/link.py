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
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from solocron.clock import Clock
from solocron.errors import ConfigError, LockReadOnly, LockUnavailable

log = logging.getLogger("solocron.locks")

# "Not now", as the library's classes (which drop the word itself) or as the word in an error's
# text: at its start, or inside a script's error ("...: -OOM command not ...").
_REFUSALS = (
    BusyLoadingError, ReadOnlyError, OutOfMemoryError, ClusterDownError, MasterDownError,
)  # fmt: skip
_REFUSAL = re.compile(
    r"(?:^|[ -])(READONLY|MISCONF|OOM|LOADING|CLUSTERDOWN|MASTERDOWN|NOREPLICAS)\b"
)
_RETRY_PAUSES_S = (0.02, 0.05, 0.1, 0.2)
_MAX_PENDING = 100_000
_STALLED = 1.5  # deadlines: a timeout noticed so late was not noticed by a running loop


def check_url(url: str) -> None:
    """Raise ConfigError unless the library can use `url`; nothing of it is shown, because any part
    of a malformed URL may be its password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "unix" or re.fullmatch(r"/?[0-9]*", parts.path) is not None
        usable = usable and not parts.fragment and "@" not in parts.query
        pool = ConnectionPool.from_url(url)
        # Whatever an option is wrong with, the library raises it in some form of its own.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except Exception:
        usable = False
    if not usable:
        raise ConfigError(
            "REDIS_URL is not usable: give redis://host:6379/0 (or rediss://, unix:///path); "
            "a password goes before the host, its '/', '#', '?' and '@' as %2F, %23, %3F and %40"
        )


class _Session:
    """One live connection, made at `since` (monotonic s): commands out in one write per turn,
    replies in order."""

    def __init__(self, connection: AbstractConnection, since: float) -> None:
        self._connection = connection
        self.since = since
        self._out: list[bytes] = []
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._wake = asyncio.Event()
        self.error: BaseException | None = None
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def submit(self, args: Sequence[str | bytes | int]) -> asyncio.Future[Any]:
        """Queue one command. The future holds its reply, or why there is none."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.error is not None:
            future.set_exception(LockUnavailable(f"no connection to Redis: {_name(self.error)}"))
            return future
        if len(self._pending) >= _MAX_PENDING:
            future.set_exception(LockUnavailable(f"{_MAX_PENDING} commands wait for Redis"))
            return future
        self._out.extend(self._connection.pack_command(*args))
        self._pending.append(future)
        self._wake.set()
        return future

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                chunk, self._out = self._out, []
                await self._connection.send_packed_command(b"".join(chunk))
        except (RedisError, OSError) as error:
            self.fail(error)

    async def _read(self) -> None:
        try:
            while True:
                reply: Any
                try:
                    reply = await self._connection.read_response()
                except (ResponseError, BusyLoadingError) as refusal:
                    reply = refusal
                self._resolve(reply)
        except (RedisError, OSError) as error:
            self.fail(error)

    def _resolve(self, reply: Any) -> None:
        if not self._pending:
            return
        future = self._pending.popleft()
        if future.done():  # its caller was cancelled; order is kept all the same
            return
        if isinstance(reply, RedisError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """Mark the connection lost; what is in flight becomes unknown."""
        if self.error is not None:
            return
        self.error = error
        for future in self._pending:
            if not future.done():
                future.set_exception(LockUnavailable(f"no reply from Redis: {_name(error)}"))
                future.exception()  # read here: a cancelled caller never will
        self._pending.clear()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Close the socket and await both tasks."""
        self.fail(ConnectionError("closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.disconnect(nowait=True)


class RedisLink:
    """Commands to Redis under one deadline that covers connecting and retrying.

    `url` is redis://, rediss:// or unix://; `deadline_s` the longest a call may take, in s.
    `scripts` are loaded whenever a connection is made.
    """

    def __init__(
        self, url: str, *, clock: Clock, deadline_s: float = 1.0, scripts: Sequence[str] = ()
    ) -> None:
        check_url(url)
        self._pool = ConnectionPool.from_url(url)
        # Set behind the URL's own options. No socket timeout: the connection idles between ticks,
        # and `call` has the one deadline; with one, the library also makes a task per write.
        self._pool.connection_kwargs.update(
            protocol=2, decode_responses=False, retry=Retry(NoBackoff(), 0),
            socket_timeout=None, socket_connect_timeout=deadline_s,
        )  # fmt: skip
        self._clock = clock
        self._deadline_s = deadline_s
        self._scripts = tuple(scripts)
        self._session: _Session | None = None
        self._connecting = asyncio.Lock()
        self._up: bool | None = None

    @property
    def is_up(self) -> bool:
        """Whether the last exchange with Redis worked."""
        return self._up is True

    async def call(self, *args: str | bytes | int) -> Any:
        """Send an idempotent command; ask again after a loss until the deadline.

        Raises LockUnavailable (no answer, or an error for one) or LockReadOnly (Redis refuses
        writes); only NoScriptError passes.
        """
        for again in (True, False):
            began = self._clock.monotonic()
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await self._call(args)
            except TimeoutError:
                waited = (self._clock.monotonic() - began) / self._deadline_s
                if again and waited > _STALLED:
                    continue  # this loop was stalled: that says nothing of Redis
                session = self._session
                if session is None or session.since <= began:  # a newer one is not to blame
                    self._lost(f"no answer within {self._deadline_s:g} s", session)
                break
        raise LockUnavailable(f"Redis gave no answer within {self._deadline_s:g} s")

    async def _call(self, args: Sequence[str | bytes | int]) -> Any:
        attempt = 0
        while True:
            session = None
            try:
                session = await self._connected()
                reply = await session.submit(args)
                self._ready()
                return reply
            except NoScriptError:
                raise
            except (ResponseError, BusyLoadingError) as error:
                self._lost(_name(error), session)
                if isinstance(error, _REFUSALS) or _REFUSAL.search(str(error)):
                    raise LockReadOnly(f"Redis refuses writes: {_name(error)}") from None
                raise LockUnavailable(f"Redis refuses {args[0]!s}: {_name(error)}") from None
            except (LockUnavailable, RedisError, OSError) as error:
                self._lost(_name(error), session)
                if attempt >= len(_RETRY_PAUSES_S):
                    raise LockUnavailable(f"Redis is not reachable: {_name(error)}") from None
                await asyncio.sleep(_RETRY_PAUSES_S[attempt])
                attempt += 1

    async def _connected(self) -> _Session:
        if self._session is not None and self._session.error is None:
            return self._session
        async with self._connecting:
            if self._session is not None:
                if self._session.error is None:
                    return self._session
                await self._session.close()
                self._session = None
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                session = _Session(connection, self._clock.monotonic())
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._session = session
            # One round trip; a script that could not be loaded is sent whole when it is used.
            loads = [session.submit(("SCRIPT", "LOAD", script)) for script in self._scripts]
            await asyncio.gather(*loads, return_exceptions=True)
            return session

    def _ready(self) -> None:
        """Say once that commands work: connecting to a server that refuses them is no return."""
        if not self._up:
            self._up = True
            log.info("✅ Redis connected for distributed locks")
            log.info("✅ Redis ready for distributed locks")

    def _lost(self, reason: str, session: _Session | None) -> None:
        """Drop the session that failed (not one made since), and say once that Redis is lost."""
        if session is not None:
            session.fail(ConnectionError(reason))
        if self._up is not False:
            self._up = False
            log.warning("Redis lost for distributed locks: %s; the ledger decides alone", reason)

    async def close(self) -> None:
        """Close the connection. Safe to call twice; a later call connects again."""
        async with self._connecting:
            session, self._session = self._session, None
            if session is not None:
                await session.close()


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
