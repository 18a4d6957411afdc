"""Server-Sent Events `GET /events`: the hub's notifications for clients that want plain HTTP.

`?stores=42,43` says what to hear of, `*` stands for all stores, and `42:17` starts after a seq.
Each notification is an event whose `id` is the client's whole position, such as `42:18,43:5`: sent
back as Last-Event-ID it resumes every store of the stream. `event: subscribed` has the WebSocket's
answer of that name, `event: end` the code and reason the server ends with.

A stream is written to past aiohttp, as the WebSocket is; aiohttp writes the head and the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from aiohttp import web
from aiohttp.http import HttpVersion11

from solocron.errors import InvalidInput, StorageUnavailable
from solocron.notifications.client import Client, Message, Receiver, Turn
from solocron.notifications.hub import Hub
from solocron.stores.repository import UnknownStore
from solocron.web.auth import Authenticator
from solocron.web.connections import GOING_AWAY, Connections, flushed
from solocron.web.frames import MAX_SEQ, is_topic
from solocron.web.guard import address, bearer, check_origin, cors, quoted

log = logging.getLogger("solocron.web")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# With ids of 64 characters and seqs of 12 digits the position has 7,800: it fits the 8 KiB that
# servers and proxies take of a header.
MAX_STORES = 100

_HEADERS = {
    "Content-Type": "text/event-stream", "Cache-Control": "no-store",
    "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff",
}  # fmt: skip
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET",
    "Access-Control-Allow-Headers": "Authorization, Last-Event-ID",
    "Access-Control-Max-Age": "600",
    "Allow": "GET, OPTIONS",
}
_RETRY_MS = (1_000, 5_000)  # spread, for when a server dies with all its streams
_CLOSE_WITHIN_S = 2.0
_FORM = "ids, or * for all stores, each if need be with its last seq seen, such as 42:17,43"
_SEQ = re.compile(r"[0-9]{1,19}")


class Events:
    """The event streams among this server's `connections`. One that was silent for `heartbeat_s`
    gets a comment; one whose peer takes nothing of what it was sent for twice as long is cut."""

    def __init__(
        self, hub: Hub, authenticator: Authenticator, connections: Connections, *,
        origins: frozenset[str], heartbeat_s: float,
    ) -> None:  # fmt: skip
        self._hub = hub
        self._authenticator = authenticator
        self._connections = connections
        self._origins = origins
        self._heartbeat_s = heartbeat_s

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client until it goes. What is wrong with its request is raised before."""
        check_origin(request, self._origins)
        principal = self._authenticator.authenticate(bearer(request))
        principal.require("notifications:read")
        wanted = _wanted(request)
        for each in wanted:
            principal.require_store(each)
        self._connections.check()
        transport = request.transport
        if transport is None:
            return web.Response()  # nobody is there to get it
        stream = Stream(request, transport, self._connections, self._hub, self._heartbeat_s)
        seats = self._connections.of_token
        self._connections.admit(stream, address(request))
        try:
            seats.take(principal.token)
            try:
                for each in await self._hub.unknown(wanted):
                    raise UnknownStore(f"store {each!r}: there is none with that id")
                left = self._authenticator.seconds_left(principal)
                return await stream.serve(wanted, cors(request, self._origins), left)
            finally:
                seats.leave(principal.token)
        finally:
            self._connections.leave(stream)

    async def preflight(self, request: web.Request) -> web.Response:
        """What a browser asks before a page of another origin may send a token."""
        check_origin(request, self._origins)
        return web.Response(status=204, headers=_PREFLIGHT)

    def readable(self, handler: Handler) -> Handler:
        """The handler, with answers that pages of allowed origins may read."""

        async def handle(request: web.Request) -> web.StreamResponse:
            response = await handler(request)
            if not response.prepared:  # a stream's head is sent
                response.headers.update(cors(request, self._origins))
            return response

        return handle


class Stream:
    """One connection. All of it happens in the task that called `serve`: `close` interrupts what
    that task waits for."""

    kind = "event-stream"

    def __init__(
        self, request: web.Request, transport: asyncio.Transport, connections: Connections,
        hub: Hub, heartbeat_s: float,
    ) -> None:  # fmt: skip
        self._request = request
        self._transport = transport
        self._ends = connections.ends
        self._hub = hub
        self._heartbeat_s = heartbeat_s
        self._chunked = request.version >= HttpVersion11
        self._client = EventClient(
            transport, connections.turn, hub.positions, chunked=self._chunked, on_slow=self._end
        )
        self._interrupt: asyncio.Timeout | None = None
        self._is_ended = False
        self._last_words: bytes | None = None
        self._beat: asyncio.TimerHandle | None = None

    async def serve(
        self, wanted: Mapping[str, int | None], headers: Mapping[str, str], expires_in: float | None
    ) -> web.StreamResponse:
        """Send what comes after these seqs, for at most `expires_in` s (None: no such end)."""
        response = web.StreamResponse(headers={**_HEADERS, **headers})
        response.force_close()
        if self._chunked:
            response.enable_chunked_encoding()
        try:
            await response.prepare(self._request)
        except ConnectionError:
            return response
        self._ends.set(self, expires_in)
        try:
            await self._follow(wanted)
        except Exception as error:  # none may become a second answer in the middle of this one
            if not self._is_ended and not isinstance(error, StorageUnavailable):
                log.exception("an event stream failed")
            self._end(b"")
        finally:
            self._ends.forget(self)
            if self._beat is not None:
                self._beat.cancel()
            await self._hub.remove(self._client)
        await self._part(response)
        return response

    async def _follow(self, wanted: Mapping[str, int | None]) -> None:
        """Notifications, until `_end` interrupts it with TimeoutError."""
        try:
            async with asyncio.timeout(None) as self._interrupt:
                if not self._is_ended:  # it may have been while its stores were looked up
                    self._open()
                    await self._hub.subscribe(self._client, wanted)
                    await asyncio.get_running_loop().create_future()
        finally:
            self._interrupt = None

    def close(self, code: int, reason: str) -> None:
        """Write no more notifications, and have `serve` end with a `retry` field when the server
        is going away, else with an `end` event."""
        _, is_going, delay_ms = reason.partition("reconnect-after-ms=")
        if code == GOING_AWAY and is_going:
            self._end(f"retry: {delay_ms}\n\n".encode())
            return
        why = json.dumps({"code": code, "reason": reason}, separators=(",", ":"))
        self._end(f"event: end\ndata: {why}\n\n".encode())

    def drop(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def _open(self) -> None:
        _cut_when_silent(self._transport, 2 * self._heartbeat_s)
        self._transport.set_protocol(_Watch(self._transport.get_protocol(), self._end))
        self._transport.resume_reading()  # which requests behind this one may have paused
        self._client.write(b"retry: %d\n\n" % random.randint(*_RETRY_MS))
        self._keep_alive()

    def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        silent_s = loop.time() - self._client.written_at
        if silent_s >= self._heartbeat_s:
            self._client.write(b": keep-alive\n\n")
            silent_s = 0.0
        self._beat = loop.call_later(self._heartbeat_s - silent_s, self._keep_alive)

    def _end(self, last_words: bytes | None = None) -> None:
        """Write nothing more, and have `serve` end: with these words, or by a cut."""
        if self._is_ended:
            return
        self._is_ended, self._last_words = True, last_words
        self._client.close()
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())

    async def _part(self, response: web.StreamResponse) -> None:
        """Send the end behind what is written already, if the peer takes that in time."""
        if self._last_words is not None:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_CLOSE_WITHIN_S):
                    if self._last_words:
                        await response.write(self._last_words)
                    await response.write_eof()
                    await flushed(self._transport)
        if self._last_words is None or self._transport.get_write_buffer_size():
            self._transport.abort()
        self._request.protocol.force_close()


class EventClient(Client):
    """A client of the hub that is written to as an event stream. `positions` says how far the hub
    has brought it; `chunked`: each event is a chunk of HTTP/1.1."""

    def __init__(
        self, transport: asyncio.Transport, turn: Turn,
        positions: Callable[[Receiver], Mapping[str, int]], *, chunked: bool,
        on_slow: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(transport, turn, on_slow=on_slow)
        self._positions = positions
        self._chunked = chunked
        self._at: dict[str, str] = {}
        self.written_at = 0.0

    def notify(self, message: Message) -> None:
        """Queue a notification; dropped when the client is closed."""
        self._at[message.topic] = f"{message.topic}:{message.seq}"
        self._event(b"", message.event)

    def tell(self, answer: bytes) -> None:
        """Queue what the hub answers to a subscribe; dropped when the client is closed."""
        positions = sorted(self._positions(self).items())
        self._at = {topic: f"{topic}:{seq}" for topic, seq in positions}
        self._event(b"event: subscribed\n", answer)

    def _event(self, kind: bytes, data: bytes) -> None:
        position = ",".join(self._at.values()).encode()
        self.write(b"%bid: %b\ndata: %b\n\n" % (kind, position, data))

    def write(self, text: bytes) -> None:
        """Queue whole lines of the stream; dropped when the client is closed."""
        self.written_at = asyncio.get_running_loop().time()
        self.send(b"%x\r\n%b\r\n" % (len(text), text) if self._chunked else text)


class _Watch(asyncio.Protocol):
    """Stands before aiohttp's protocol while a stream is open: it says at once when the client
    has gone, which aiohttp tells no handler, and drops what the client sends."""

    def __init__(self, http: asyncio.BaseProtocol, gone: Callable[[], None]) -> None:
        self._http = http
        self._gone = gone

    def eof_received(self) -> None:
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()


def _cut_when_silent(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel cut a peer that has acknowledged, or made room for, nothing of what was sent
    for so long. Linux only; elsewhere its own patience decides."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # it may be gone already
            connection.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


def _wanted(request: web.Request) -> dict[str, int | None]:
    """What the client asks for: store ids, or EVERY, each with its last seq seen, or None for only
    new ones. Raises InvalidInput."""
    lists = request.query.getall("stores", [])
    if not lists:
        raise InvalidInput(f"stores is missing: give {_FORM}")
    wanted = positions(",".join(lists), "stores")
    last_id = request.headers.get("Last-Event-ID") or request.query.get("lastEventId")
    if last_id:
        seen = positions(last_id, "Last-Event-ID", with_seqs=True)
        wanted |= {each: seen[each] for each in wanted if each in seen}
    return wanted


def positions(text: str, name: str, *, with_seqs: bool = False) -> dict[str, int | None]:
    """Store ids apart by commas, each perhaps, or `with_seqs` always, with `:` and its last seq.
    Raises InvalidInput."""
    items = text.split(",")
    if len(items) > MAX_STORES:
        raise InvalidInput(
            f"{name} has {len(items)} stores: give at most {MAX_STORES}; the WebSocket takes more"
        )
    found: dict[str, int | None] = {}
    for item in items:
        store_id, colon, seq = item.partition(":")
        if not is_topic(store_id) or ((colon or with_seqs) and not _is_seq(seq)):
            form = "the id of an event, such as 42:17,43:5" if with_seqs else _FORM
            raise InvalidInput(f"{name} has {quoted(item)}: give {form}")
        if store_id in found:
            raise InvalidInput(f"{name} has store {store_id!r} twice: give it once")
        found[store_id] = int(seq) if colon else None
    return found


def _is_seq(text: str) -> bool:
    return _SEQ.fullmatch(text) is not None and int(text) <= MAX_SEQ
