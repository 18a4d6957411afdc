"""The WebSocket as an ASGI application, for a host that an ASGI server runs: `web.session` over
`receive` and `send`.

What ASGI leaves to its server: pings and their answers, the size up to which a message is taken in
before it is refused here, compression, and how long a peer that takes nothing more is kept once it
has been given up here. A server that does not wait for the end of the lifespan closes WebSockets
with a code of its own.

Who may not come in is told why by a close frame: as an answer to the request, ASGI servers send a
403 without a reason, or take one with a reason for a fault of the application.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from solocron.notifications.client import MAX_PENDING_BYTES, Message, Turn
from solocron.notifications.hub import Hub
from solocron.web.auth import Authenticator, Forbidden
from solocron.web.connections import GOING_AWAY, Connections, reconnect_delays
from solocron.web.guard import address, check_host, check_origin
from solocron.web.server import problem
from solocron.web.session import (
    FORBIDDEN,
    INTERNAL,
    MAX_FRAME,
    PROTOCOL,
    TOO_LARGE,
    TURN_AWAY_WITHIN_S,
    Refused,
    Session,
    shortened,
    token_of,
)

log = logging.getLogger("solocron.web")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]

_MOST_TOLD = 1000  # addresses
_NOT_STARTED = (
    "the service is not started: give the application lifespan=cron.lifespan, or run it within "
    "'async with cron:'"
)


class AsgiSockets:
    """An ASGI application: the WebSockets of an ASGI server among this service's `connections`.

    It answers plain HTTP with 426. As the whole application of a server it also obeys the
    `lifespan` protocol. `is_up` says whether the service is started.
    """

    def __init__(
        self, hub: Hub, authenticator: Authenticator, connections: Connections, *,
        origins: frozenset[str], is_up: Callable[[], bool], lifespan: Lifespan,
    ) -> None:  # fmt: skip
        self._hub = hub
        self._authenticator = authenticator
        self._connections = connections
        self._origins = origins
        self._is_up = is_up
        self._lifespan = lifespan
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it goes, answer one request, or run the service."""
        match scope["type"]:
            case "websocket":
                await self._handle(scope, receive, send)
            case "http":
                text = f"this is a WebSocket: connect with the subprotocol {PROTOCOL}"
                answer = problem(426, "Upgrade required", text)
                answer.headers.update({"Upgrade": "websocket", "Connection": "Upgrade"})
                await _respond(send, answer)
            case "lifespan":
                await _live(self._lifespan(None), receive, send)
            case kind:
                raise ValueError(f"ASGI scope {kind!r}: this takes websocket, http and lifespan")

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return  # nobody is there any more
        request = AsgiRequest(scope)
        try:
            if self._authenticator.is_open:
                check_host(request)
            check_origin(request, self._origins)
        except Forbidden as error:
            self._tell_once(address(request), str(error))
            await _turn_away(scope, send, FORBIDDEN, str(error))
            return
        if not self._is_up():
            log.error("a WebSocket was asked for, but %s", _NOT_STARTED)
            await _turn_away(scope, send, INTERNAL, _NOT_STARTED)
            return
        with suppress(OSError):  # the client is gone
            await _accept(scope, send)
            socket = AsgiSocket(
                receive, send, self._connections, self._hub, self._authenticator,
                token_of(request, self._authenticator),
            )  # fmt: skip
            await socket.serve(address(request))

    def _tell_once(self, address: str, reason: str) -> None:
        if address not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(address)
            log.warning("WebSockets of %s are refused: %s", address or "a Unix socket", reason)


class AsgiRequest:
    """An ASGI scope as the guards look at it."""

    method = "GET"

    def __init__(self, scope: Scope) -> None:
        self.headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        )
        self.host = self.headers.get("Host", "")
        client = scope.get("client")
        self.transport = None if client is None else _Peer(tuple(client))


class _Peer:
    """The other end of an ASGI server's connection; behind a proxy, as the server sees it."""

    def __init__(self, client: tuple[str, int]) -> None:
        self._client = client

    def get_extra_info(self, name: str, /) -> Any:
        return self._client if name == "peername" else None


class AsgiSocket(Session):
    """One connection of an ASGI server's."""

    __slots__ = ("_is_gone", "_parting", "_pump", "_receive", "_send")

    def __init__(
        self, receive: Receive, send: Send, connections: Connections, hub: Hub,
        authenticator: Authenticator, token: str | None,
    ) -> None:  # fmt: skip
        self._receive = receive
        self._send = send
        self._is_gone = False
        self._parting: asyncio.Timeout | None = None
        self._pump: asyncio.Task[None] | None = None
        client = AsgiClient(connections.turn, on_slow=self._slow)
        super().__init__(client, connections, hub, authenticator, token)

    async def serve(self, address: str) -> None:
        """Turn the client away, or answer its frames until it or a server closes."""
        assert isinstance(self._client, AsgiClient)
        self._pump = asyncio.create_task(self._client.pump(self._send, self._broken))
        try:
            await super().serve(address)
        except asyncio.CancelledError:  # the ASGI server leaves before the service does
            hint = f"reconnect-after-ms={reconnect_delays(1)[0]}"
            await self._part(GOING_AWAY, hint, TURN_AWAY_WITHIN_S)
            raise
        finally:
            self._pump.cancel()

    def _next(self) -> Awaitable[MutableMapping[str, Any]]:
        return self._receive()

    def _read(self, message: Mapping[str, Any]) -> str | bytes | None:
        if message["type"] != "websocket.receive":
            self._is_gone = True
            return None
        text: str | None = message.get("text")
        if text is None:
            return b""
        if len(text) > MAX_FRAME or len(text.encode()) > MAX_FRAME:
            raise Refused(TOO_LARGE, f"a frame was larger than {MAX_FRAME} bytes")
        return text

    def _broken(self, error: Exception) -> None:
        log.debug("an ASGI server takes nothing more for a WebSocket: %r", error)
        self.close(INTERNAL, "the connection is broken")

    async def _part(self, code: int, reason: str, within_s: float) -> None:
        assert self._pump is not None
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        if self._is_gone:
            return
        message = {"type": "websocket.close", "code": code, "reason": shortened(reason)}
        try:
            async with asyncio.timeout(within_s) as self._parting:
                await self._send(message)
        except TimeoutError:
            pass  # the server has its own patience with who takes nothing
        except Exception as error:  # each server has its own for a peer that is gone
            log.debug("a WebSocket of an ASGI server had ended already: %r", error)
        finally:
            self._parting = None

    def drop(self) -> None:
        """Wait no longer for the peer to take the close frame: the server is to close."""
        if self._parting is not None:
            self._parting.reschedule(asyncio.get_running_loop().time())


class AsgiClient:
    """A client of the hub that is written to by an ASGI server's `send`, which waits while the peer
    takes nothing. What waits here for that is bounded: with more than `max_pending` bytes `on_slow`
    is called once, and nothing more is sent."""

    def __init__(
        self, turn: Turn, *, on_slow: Callable[[], None], max_pending: int = MAX_PENDING_BYTES
    ) -> None:
        self._turn = turn
        self._on_slow = on_slow
        self._max_pending = max_pending
        self._queue: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.is_closed = False
        self.pending = 0

    def notify(self, message: Message) -> None:
        """Queue a notification; dropped when closed."""
        self._add(message.event)

    def tell(self, answer: bytes) -> None:
        """Queue what is no notification, a JSON object; dropped when closed."""
        self._add(answer)

    def _add(self, text: bytes) -> None:
        if self.is_closed:
            return
        self._queue.append(text)
        self.pending += len(text)
        self._news.set()
        if self.pending > self._max_pending:
            self._turn.slow += 1
            self.close()
            asyncio.get_running_loop().call_soon(self._on_slow)

    def close(self) -> None:
        """Send nothing more, not even what is queued."""
        self.is_closed = True
        self._queue.clear()

    async def pump(self, send: Send, on_broken: Callable[[Exception], None]) -> None:
        """Send what is queued, until cancelled; `on_broken` is told what `send` raises."""
        try:
            while True:
                while self._queue:
                    text = self._queue.popleft()
                    await send({"type": "websocket.send", "text": text.decode()})
                    self.pending -= len(text)
                self._news.clear()
                await self._news.wait()
        except Exception as error:
            self.close()
            on_broken(error)


async def _accept(scope: Scope, send: Send) -> None:
    spoken = PROTOCOL if PROTOCOL in scope.get("subprotocols", ()) else None
    await send({"type": "websocket.accept", "subprotocol": spoken})


async def _turn_away(scope: Scope, send: Send, code: int, reason: str) -> None:
    """Accept only to close: so the client is told why."""
    with suppress(OSError, TimeoutError):  # it is gone, or takes nothing
        async with asyncio.timeout(TURN_AWAY_WITHIN_S):
            await _accept(scope, send)
            await send({"type": "websocket.close", "code": code, "reason": shortened(reason)})


async def _respond(send: Send, answer: web.Response) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in answer.headers.items()
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _live(life: AbstractAsyncContextManager[None], receive: Receive, send: Send) -> None:
    """The lifespan protocol: what cannot start, or stop, is told the server and raised."""
    await receive()
    phase = "startup"
    try:
        async with life:
            await send({"type": "lifespan.startup.complete"})
            phase = "shutdown"
            await receive()
    except Exception as error:
        await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
        raise
    await send({"type": "lifespan.shutdown.complete"})
