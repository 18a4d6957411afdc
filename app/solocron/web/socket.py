"""The WebSocket `/ws` of the aiohttp port: `web.session` over a connection that is written to past
aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiohttp import WSMessage, WSMsgType, web

from solocron.notifications.client import Client
from solocron.notifications.hub import Hub
from solocron.web.auth import Authenticator
from solocron.web.connections import Connections, flushed
from solocron.web.guard import address, check_origin
from solocron.web.session import CLOSE_WITHIN_S, MAX_FRAME, PROTOCOL, Session, shortened, token_of

_PROTOCOLS = (PROTOCOL,)
_END = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)


class Sockets:
    """The WebSockets among this server's `connections`. One that has been silent for `heartbeat_s`
    is pinged, and closed when it does not answer within half of that."""

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
        """Serve one client until it goes."""
        check_origin(request, self._origins)
        ws = web.WebSocketResponse(
            protocols=_PROTOCOLS, heartbeat=self._heartbeat_s, compress=False,
            max_msg_size=MAX_FRAME, timeout=CLOSE_WITHIN_S,
        )  # fmt: skip
        try:
            await ws.prepare(request)
        except ConnectionError:
            return web.Response()  # nobody is there to get it
        transport = request.transport
        if transport is not None:
            token = token_of(request, self._authenticator)
            socket = Socket(ws, transport, self._connections, self._hub, self._authenticator, token)
            del token
            await socket.serve(address(request))
        return ws


class Socket(Session):
    """One connection of aiohttp's."""

    __slots__ = ("_transport", "_ws")

    def __init__(
        self, ws: web.WebSocketResponse, transport: asyncio.Transport, connections: Connections,
        hub: Hub, authenticator: Authenticator, token: str | None,
    ) -> None:  # fmt: skip
        self._ws = ws
        self._transport = transport
        client = Client(transport, connections.turn, on_slow=self._slow)
        super().__init__(client, connections, hub, authenticator, token)

    def _next(self) -> Awaitable[WSMessage]:
        return self._ws.receive()

    def _read(self, message: WSMessage) -> str | bytes | None:
        if message.type is WSMsgType.TEXT:
            text: str = message.data
            return text
        return None if message.type in _END else b""

    async def _part(self, code: int, reason: str, within_s: float) -> None:
        if self._ws.exception() is not None:  # gone, or silent: it takes nothing more
            self.drop()
        await part(self._ws, self._transport, code, reason, within_s)

    def drop(self) -> None:
        """Cut the connection."""
        self._transport.abort()


async def part(
    ws: web.WebSocketResponse, transport: asyncio.Transport, code: int, reason: str, within_s: float
) -> None:
    """Send the close frame, unless one was sent, behind what is written already; then drop a peer
    that has not taken it all and answered within `within_s`."""
    try:
        async with asyncio.timeout(within_s):
            await ws.close(code=code, message=shortened(reason).encode(), drain=False)
            await flushed(transport)
    except TimeoutError:
        pass
    finally:
        if transport.get_write_buffer_size():
            transport.abort()
