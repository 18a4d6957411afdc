"""One live connection to Redis: commands out in one write per loop turn, replies in order.

The library connects (which is the login, TLS, unix sockets and Sentinel); from then on its socket
is served here, without the tasks and streams that cost more than the commands themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from hiredis import Reader, pack_command
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import InvalidResponse, RedisError

from solocron.errors import LockUnavailable

_MAX_PENDING = 100_000
_MAX_REPLY = 64 << 20  # bytes
_AT_ONCE = 32  # commands: that many are sent while more are being made, so that Redis works, too
_LATE = 0.5  # deadlines: a timer so late says that this loop stood still
_NOTHING = object()

Command = Sequence[str | bytes | int]


class _Waiting:
    """What was sent at `sent_s` (loop time): one command, or `count`, which are answered together
    by a list of `replies`."""

    __slots__ = ("count", "future", "replies", "sent_s")

    def __init__(
        self, future: asyncio.Future[Any], sent_s: float, count: int, replies: list[Any] | None
    ) -> None:
        self.future = future
        self.sent_s = sent_s
        self.count = count
        self.replies = replies


class Session(asyncio.Protocol):
    """Owns `connection`, made at `since` (monotonic s). After a loss all in flight is unknown, and
    a reply that is not there `deadline_s` after its command is a loss."""

    def __init__(self, connection: AbstractConnection, since: float, deadline_s: float) -> None:
        writer = connection._writer  # the library has no public name for its socket
        assert writer is not None
        self.since = since
        self.error: BaseException | None = None
        self._connection = connection
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error,
            notEnoughData=_NOTHING,
        )  # fmt: skip
        self._unread = 0  # bytes of a reply that is not whole
        self._out: list[bytes] = []
        self._pending: deque[_Waiting] = deque()
        self._flushing: asyncio.Handle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._stood_still_s = 0.0  # until when (loop time) this loop last did
        self._transport = writer.transport
        self._transport.set_protocol(self)

    def submit(self, args: Command) -> asyncio.Future[Any]:
        """Send one command. The future holds its reply, or why there is none."""
        # redis-py's own takes ten times as long. (The stub knows commands of one word only.)
        packed = pack_command(tuple(args))  # type: ignore[arg-type]
        return self._send([packed], None)

    def submit_all(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send commands. The future holds the replies, errors among them, or why there is none."""
        packed = [pack_command(tuple(each)) for each in commands]  # type: ignore[arg-type]
        return self._send(packed, [])

    def _send(self, packed: list[bytes], replies: list[Any] | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.error is not None:
            future.set_exception(LockUnavailable(f"no connection to Redis: {name_of(self.error)}"))
            return future
        if len(self._pending) >= _MAX_PENDING:
            future.set_exception(LockUnavailable(f"{_MAX_PENDING} commands wait for Redis"))
            return future
        self._out += packed
        idle = not self._pending
        self._pending.append(_Waiting(future, self._loop.time(), len(packed), replies))
        if idle or len(self._out) >= _AT_ONCE:
            self._flush()
        elif self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)
        if self._watch is None:
            self._watch = self._loop.call_later(self._deadline_s, self._look)
        return future

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        chunk, self._out = self._out, []
        self._transport.write(b"".join(chunk))

    def data_received(self, data: bytes) -> None:
        """Redis replied, or with a part of a reply."""
        self._unread += len(data)
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                self._unread = 0
                self._resolve(reply)
        except RedisError as error:
            self.fail(error)
        if self._unread > _MAX_REPLY:
            self.fail(InvalidResponse(f"a reply of more than {_MAX_REPLY} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whomever."""
        self.fail(exc or ConnectionError("Connection closed by server"))

    def _resolve(self, reply: Any) -> None:
        if not self._pending:
            return
        waiting = self._pending[0]
        if waiting.replies is not None:
            waiting.replies.append(reply)
            if len(waiting.replies) < waiting.count:
                return
            reply = waiting.replies
        self._pending.popleft()
        if waiting.future.done():  # its caller was cancelled; order is kept all the same
            return
        if isinstance(reply, RedisError):
            waiting.future.set_exception(reply)
        else:
            waiting.future.set_result(reply)

    def _look(self) -> None:
        """See whether the first command in flight waits for too long; the others came later."""
        assert self._watch is not None
        now, due = self._loop.time(), self._watch.when()
        self._watch = None
        if not self._pending:
            return
        if now - due > _LATE * self._deadline_s:
            self._stood_still_s = now  # its reply may be there, unread
        left = max(self._pending[0].sent_s, self._stood_still_s) + self._deadline_s - now
        if left > 0.001:
            self._watch = self._loop.call_later(left, self._look)
        else:
            self.fail(TimeoutError(f"no answer within {self._deadline_s:g} s"))

    def fail(self, error: BaseException) -> None:
        """Mark the connection lost; what is in flight becomes unknown."""
        if self.error is not None:
            return
        self.error = error
        for each in self._pending:
            if not each.future.done():
                each.future.set_exception(LockUnavailable(f"no reply from Redis: {name_of(error)}"))
                each.future.exception()  # read here: a cancelled caller never will
        self._pending.clear()
        self._out.clear()
        for handle in (self._flushing, self._watch):
            if handle is not None:
                handle.cancel()
        self._transport.abort()

    async def close(self) -> None:
        """Close the socket."""
        self.fail(ConnectionError("closed"))
        await self._connection.disconnect(nowait=True)


def name_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = str(error).rstrip(".")  # the library's end with one, and ours go on
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
