"""One live connection to Redis: commands out in one write per loop turn, replies in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from solocron.errors import LockUnavailable

_MAX_PENDING = 100_000

Command = Sequence[str | bytes | int]


class Session:
    """Owns `connection`, made at `since` (monotonic s). After a loss all in flight is unknown."""

    def __init__(self, connection: AbstractConnection, since: float) -> None:
        self._connection = connection
        self.since = since
        self._out: list[bytes] = []
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._wake = asyncio.Event()
        self.error: BaseException | None = None
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def submit(self, args: Command) -> asyncio.Future[Any]:
        """Queue one command. The future holds its reply, or why there is none."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.error is not None:
            future.set_exception(LockUnavailable(f"no connection to Redis: {name_of(self.error)}"))
            return future
        if len(self._pending) >= _MAX_PENDING:
            future.set_exception(LockUnavailable(f"{_MAX_PENDING} commands wait for Redis"))
            return future
        # redis-py's own takes ten times as long. (The stub knows commands of one word only.)
        self._out.append(pack_command(tuple(args)))  # type: ignore[arg-type]
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
                future.set_exception(LockUnavailable(f"no reply from Redis: {name_of(error)}"))
                future.exception()  # read here: a cancelled caller never will
        self._pending.clear()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Close the socket and await both tasks."""
        self.fail(ConnectionError("closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.disconnect(nowait=True)


def name_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = str(error).rstrip(".")  # the library's end with one, and ours go on
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
