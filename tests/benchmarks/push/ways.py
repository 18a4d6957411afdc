"""The ways to push that are compared: solocron as it is, and what one would write without it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import picows
import websockets
from aiohttp import web
from websockets.asyncio.server import ServerConnection

from benchmarks.push.world import EVERYBODY, missed
from solocron.notifications.client import text_frame
from solocron.service import Solocron
from solocron.settings import load

_BACKLOG = 1024
_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"
)
_PROTOCOL = "solocron.v1"

_T = TypeVar("_T")


class Way(Protocol):
    """A server whose clients all get what `send` is given."""

    @property
    def clients(self) -> int:
        """How many there are."""

    @property
    def pending(self) -> int:
        """How many of them have not taken all that was written to them."""

    def serving(self) -> AbstractAsyncContextManager[int]:
        """Serve; the port, on 127.0.0.1."""

    async def send(self, first: int, messages: Sequence[bytes]) -> None:
        """Send these messages, which have the numbers `first`, ..., to every client."""


class Product:
    """The whole service, with its settings from the environment; clients watch stores, and what is
    sent is heard of one that all of them may watch."""

    def __init__(self) -> None:
        self._cron = Solocron(load())

    @property
    def clients(self) -> int:
        return self._cron.parts.hub.clients

    @property
    def pending(self) -> int:
        topic = self._cron.parts.hub._topics[EVERYBODY]
        return sum(client.pending > 0 for client in topic.clients)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        async with self._cron.serving() as server:
            yield server.port

    async def send(self, first: int, messages: Sequence[bytes]) -> None:
        for seq, message in enumerate(messages, first):
            self._cron.parts.hub.deliver(EVERYBODY, seq, message)


class _Peer(Generic[_T]):
    """Another library's server: its `_open` clients, of which none is known to lag."""

    def __init__(self) -> None:
        self._open: set[_T] = set()

    @property
    def clients(self) -> int:
        return len(self._open)

    @property
    def pending(self) -> int:
        return 0


class Aiohttp(_Peer[web.WebSocketResponse]):
    """An aiohttp server that does nothing else. A client that subscribes gets what it missed."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        app = web.Application()
        app.router.add_get("/ws", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG)
        await site.start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=(_PROTOCOL,), compress=False)
        await ws.prepare(request)
        self._open.add(ws)
        try:
            async for message in ws:
                for store, seq in json.loads(message.data)["stores"].items():
                    for each in missed(store, seq):
                        await ws.send_str(each.decode())
        finally:
            self._open.discard(ws)
        return ws

    async def send(self, first: int, messages: Sequence[bytes]) -> None:
        for message in messages:
            text = message.decode()
            for ws in self._open:
                await ws.send_str(text)


class Websockets(_Peer[ServerConnection]):
    """`websockets.broadcast`."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        async with websockets.serve(
            self._handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=0.1,
            subprotocols=[websockets.Subprotocol(_PROTOCOL)], backlog=_BACKLOG,
        ) as server:  # fmt: skip
            yield next(iter(server.sockets)).getsockname()[1]

    async def _handle(self, connection: ServerConnection) -> None:
        self._open.add(connection)
        try:
            await connection.wait_closed()
        finally:
            self._open.discard(connection)

    async def send(self, first: int, messages: Sequence[bytes]) -> None:
        for message in messages:
            websockets.broadcast(self._open, message.decode())


class Picows(_Peer[picows.WSTransport]):
    """picows, a WebSocket library in Cython, told to send to each client in turn."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        transports = self._open

        class Listener(picows.WSListener):
            def on_ws_connected(self, transport: picows.WSTransport) -> None:
                transports.add(transport)

            def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
                transports.discard(transport)

        server = await picows.ws_create_server(
            lambda request: Listener(), "127.0.0.1", 0, backlog=_BACKLOG
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def send(self, first: int, messages: Sequence[bytes]) -> None:
        for message in messages:
            for transport in self._open:
                transport.send(picows.WSMsgType.TEXT, message)


class Kernel(_Peer[int]):
    """The frame is made once, and each socket written to without a library in between: what one
    write to each client costs at least. It could serve nobody, as it drops what a kernel does not
    take at once."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        sockets = self._open

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self._transport = transport

            def data_received(self, data: bytes) -> None:  # the handshake, and nothing after it
                self._transport.write(_UPGRADED)
                self._number = self._transport.get_extra_info("socket").fileno()
                sockets.add(self._number)

            def connection_lost(self, exc: Exception | None) -> None:
                sockets.discard(self._number)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(Accepting, "127.0.0.1", 0, backlog=_BACKLOG)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def send(self, first: int, messages: Sequence[bytes]) -> None:
        for message in messages:
            frame = text_frame(message)
            for number in self._open:
                os.write(number, frame)


WAYS: dict[str, Callable[[], Way]] = {
    "solocron": Product, "aiohttp": Aiohttp, "websockets": Websockets, "picows": Picows,
    "write(2)": Kernel,
}  # fmt: skip
