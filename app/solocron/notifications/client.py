"""Who hears of notifications: the hub's view of a client, and the WebSocket one.

A notification is encoded once for all clients; what is queued for one in a loop turn goes out in
one write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger("solocron.notifications")

MAX_PENDING_BYTES = 4 * 1024 * 1024


def text_frame(payload: bytes) -> bytes:
    """`payload` as one unmasked, uncompressed WebSocket text frame (RFC 6455, section 5.2).

    Encoded once for all clients; a library's `send_str` encodes it for each.
    """
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


@dataclass(frozen=True, slots=True)
class Message:
    """A notification on its way: the `seq`-th of its `topic` (a store's id), as CloudEvent and as
    WebSocket frame."""

    topic: str
    seq: int
    event: bytes
    frame: bytes


def message_of(topic: str, seq: int, event: bytes) -> Message:
    """The message of a CloudEvent, its frame encoded."""
    return Message(topic, seq, event, text_frame(event))


class Receiver(Protocol):
    """A client as the hub sees it."""

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more."""

    @property
    def pending(self) -> int:
        """Bytes not yet taken by its peer."""

    def notify(self, message: Message) -> None:
        """Queue a notification; dropped when closed."""

    def tell(self, answer: bytes) -> None:
        """Queue what is no notification, a JSON object; dropped when closed."""

    def close(self) -> None:
        """Take nothing more."""


class Turn:
    """The clients that have something to write at the end of this turn of the loop.

    One callback for all of them: one for each was measured to cost four times as much.
    """

    def __init__(self) -> None:
        self._clients: list[Client] = []
        self.slow = 0  # clients given up so far

    def add(self, client: Client) -> None:
        """Have the client flushed at the end of the turn."""
        if not self._clients:
            asyncio.get_running_loop().call_soon(self._end)
        self._clients.append(client)

    def _end(self) -> None:
        clients, self._clients = self._clients, []
        for client in clients:
            try:
                client.flush()
            except Exception:
                log.exception("a client could not be written to")
                client.give_up()  # it comes back and resumes


class Client:
    """Writes frames to `transport`; what is queued in one loop turn goes out in one write. All
    clients of a server share the `turn`.

    When more than `max_pending` bytes wait for the peer, `on_slow` is called once and nothing
    more is written: a slow client is closed and resumes, and stalls no other.
    """

    __slots__ = (
        "_closed", "_max_pending", "_on_slow", "_queue", "_queued", "_room", "_transport", "_turn",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        turn: Turn,
        *,
        on_slow: Callable[[], None],
        max_pending: int = MAX_PENDING_BYTES,
    ) -> None:
        self._transport = transport
        self._turn = turn
        self._on_slow = on_slow
        self._max_pending = max_pending
        self._room = max_pending  # so much may be written before the transport is asked
        self._queue: bytes | list[bytes] | None = None  # a turn's only frame needs no list
        self._queued = 0
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more, or its peer is gone."""
        return self._closed or self._transport.is_closing()

    @property
    def pending(self) -> int:
        """Bytes not yet taken by the peer's socket."""
        return self._queued + self._transport.get_write_buffer_size()

    def notify(self, message: Message) -> None:
        """Queue a notification; dropped when the client is closed."""
        self.send(message.frame)

    def tell(self, answer: bytes) -> None:
        """Queue what is no notification, a JSON object; dropped when the client is closed."""
        self.send(text_frame(answer))

    def send(self, frame: bytes) -> None:
        """Queue a whole frame; dropped when the client is closed."""
        if self._closed:
            return
        queue = self._queue
        if queue is None:
            self._queue = frame
            self._turn.add(self)
        elif isinstance(queue, list):
            queue.append(frame)
        else:
            self._queue = [queue, frame]
        self._queued += len(frame)
        if self._queued > self._max_pending:
            self.give_up()

    def flush(self) -> None:
        """Write what is queued, unless that is too much for the peer."""
        queue = self._queue
        if queue is None:
            return
        self._room -= self._queued
        if self._room < 0:
            self._room = self._max_pending - self.pending
            if self._room < 0:
                self.give_up()
                return
        self._queue, self._queued = None, 0
        if not self._transport.is_closing():
            self._transport.write(b"".join(queue) if isinstance(queue, list) else queue)

    def give_up(self) -> None:
        """Write nothing more, and have `on_slow` called."""
        self.close()
        self._turn.slow += 1
        asyncio.get_running_loop().call_soon(self._on_slow)

    def close(self) -> None:
        """Write nothing more, not even what is queued."""
        self._closed = True
        self._queue, self._queued = None, 0
