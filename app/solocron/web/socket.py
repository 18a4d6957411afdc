"""The WebSocket `/ws`, subprotocol `solocron.v1`.

The client sends `{"type": "subscribe", "stores": {"<id>": <last seq or null>}}` or `unsubscribe`
with a list, and first of all `{"type": "authenticate", "token": ...}` unless its request carried
the token in an Authorization header; at any later time that renews its token. The server answers
each (`frames` has their types), then sends each notification as one CloudEvent per text frame, and
`{"type": "error", "code", "message"}` for a frame it cannot use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aiohttp import WSMsgType, web

from solocron.errors import InvalidInput, StorageUnavailable
from solocron.notifications.client import Client
from solocron.notifications.hub import Hub
from solocron.web import frames
from solocron.web.auth import Authenticator, Forbidden, Principal, Unauthenticated
from solocron.web.connections import (
    GOING_AWAY,
    UNAUTHENTICATED,
    Connections,
    Draining,
    flushed,
)
from solocron.web.guard import (
    address,
    basic_password,
    bearer,
    check_origin,
    own_page_token,
    quoted,
)
from solocron.web.seats import Full

log = logging.getLogger("solocron.web")

PROTOCOL = "solocron.v1"
_PROTOCOLS = (PROTOCOL,)
POLICY, INTERNAL = 1008, 1011
FORBIDDEN, SLOW, TOO_MANY = 4403, 4408, 4429

MAX_FRAME = 1024 * 1024
_MAX_SUBSCRIPTIONS = 20_000
_MAX_BAD_FRAMES = 10
_AUTHENTICATE_WITHIN_S = 10.0
_CLOSE_WITHIN_S = 10.0  # a slow client must first take what was written before the close frame
_TURN_AWAY_WITHIN_S = 2.0


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
            max_msg_size=MAX_FRAME, timeout=_CLOSE_WITHIN_S,
        )  # fmt: skip
        try:
            await ws.prepare(request)
        except ConnectionError:
            return web.Response()  # nobody is there to get it
        transport = request.transport
        if transport is None:
            return ws
        try:
            self._connections.check()
            socket = Socket(
                ws, transport, self._connections, self._hub, self._authenticator,
                self._token(request),
            )  # fmt: skip
            self._connections.admit(socket, address(request))
            try:
                await socket.serve()
            finally:
                self._connections.leave(socket)
        except Draining as draining:
            await part(ws, transport, GOING_AWAY, str(draining), _TURN_AWAY_WITHIN_S)
        except Full as full:
            await part(ws, transport, TOO_MANY, str(full), _TURN_AWAY_WITHIN_S)
        return ws

    def _token(self, request: web.Request) -> str | None:
        """That of the request: the bearer's, or a password which is a token, of a page of this
        host. Any other password is not for us but for a proxy, say."""
        if basic_password(request) is None:
            return bearer(request)
        try:
            token = own_page_token(request)
            self._authenticator.authenticate(token)
        except (Forbidden, Unauthenticated):
            return None
        return token


class _Refused(Exception):
    """This connection ends, with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Socket:
    """One connection: what its client may see, and the frames it sends. `token` is that of its
    request; as there are thousands of connections, none keeps what it needs no more.

    All of it happens in the task that called `serve`: `close` interrupts what that task waits for,
    so that one task only reads, and sends the close frame.
    """

    __slots__ = (
        "_authenticator", "_bad_frames", "_client", "_connections", "_ending", "_hub", "_interrupt",
        "_seat", "_token", "_transport", "_ws",
    )  # fmt: skip

    kind = "websocket"

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        connections: Connections,
        hub: Hub,
        authenticator: Authenticator,
        token: str | None,
    ) -> None:
        self._ws = ws
        self._transport = transport
        self._connections = connections
        self._hub = hub
        self._authenticator = authenticator
        self._token = token
        self._client = Client(transport, connections.turn, on_slow=self._slow)
        self._interrupt: asyncio.Timeout | None = None
        self._ending: tuple[int, str] | None = None
        self._bad_frames = 0
        self._seat = ""

    async def serve(self) -> None:
        """Authenticate, then answer frames until the client or the server closes."""
        try:
            async with asyncio.timeout(None) as self._interrupt:
                await self._frames(await self._authenticate())
        except _Refused as refused:
            self._ending = self._ending or (refused.code, str(refused))
        except Full as full:
            self._ending = self._ending or (TOO_MANY, str(full))
        except Exception as error:
            if self._ending is None or not isinstance(error, TimeoutError):
                log.exception("a WebSocket failed")
                self._ending = self._ending or (INTERNAL, "see the server's log")
        finally:
            self._interrupt = None
            self._connections.ends.forget(self)
            self._connections.of_token.leave(self._seat)
            await self._hub.remove(self._client)
        if self._ws.exception() is not None:  # gone, or silent: it takes nothing more
            self.drop()
        code, reason = self._ending or (1000, "")
        await part(self._ws, self._transport, code, reason, _CLOSE_WITHIN_S)

    def close(self, code: int, reason: str) -> None:
        """Write nothing more, and have `serve` end with this code."""
        if self._ending is not None:
            return
        self._ending = code, reason
        self._client.close()
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())

    def drop(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    async def _authenticate(self) -> Principal:
        token, self._token = self._token, None
        if token is not None or self._authenticator.is_open:
            return self._admit(token)
        try:
            async with asyncio.timeout(_AUTHENTICATE_WITHIN_S):
                message = await self._ws.receive()
        except TimeoutError:
            within = f"no token within {_AUTHENTICATE_WITHIN_S:g} s"
            raise _Refused(UNAUTHENTICATED, within) from None
        try:
            frame = frames.parse(message.data) if message.type is WSMsgType.TEXT else {}
        except InvalidInput:  # not quoted: it may be a bare token
            frame = {}
        token = frames.token_of(frame)
        if token is None:
            raise _Refused(
                UNAUTHENTICATED,
                'the first frame must be {"type":"authenticate","token":"..."}',
            )
        principal = self._admit(token)
        self._authenticated(principal)
        return principal

    def _admit(self, token: str | None) -> Principal:
        """The principal of a token, which has the socket's seat and end from now on."""
        try:
            principal = self._authenticator.authenticate(token)
        except Unauthenticated as error:
            raise _Refused(UNAUTHENTICATED, str(error)) from None
        if not principal.may("notifications:read"):
            raise _Refused(FORBIDDEN, "this needs a token with scope 'notifications:read'")
        seats = self._connections.of_token
        seats.leave(self._seat)
        self._seat = ""
        seats.take(principal.token)
        self._seat = principal.token
        self._connections.ends.set(self, self._authenticator.seconds_left(principal))
        return principal

    def _authenticated(self, principal: Principal) -> None:
        left = self._authenticator.seconds_left(principal)
        expires_in = None if left is None else int(left)
        self._tell({"type": "authenticated", "expires_in": expires_in})

    async def _renew(self, token: str | None) -> Principal:
        """Go on with another token: what it is not for is watched no more."""
        if token is None:
            raise InvalidInput("authenticate: token must be a string")
        principal = self._admit(token)
        self._authenticated(principal)
        watched = self._hub.watched_by(self._client)
        hidden = sorted(each for each in watched if not principal.sees(each))
        if hidden:
            await self._unsubscribe(hidden)
        return principal

    async def _frames(self, principal: Principal) -> None:
        async for message in self._ws:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise InvalidInput("a binary frame: send JSON in text frames")
                principal = await self._frame(principal, frames.parse(message.data))
            except StorageUnavailable:
                self._error("unavailable", "the database is not reachable; subscribe again later")
            except InvalidInput as error:
                self._error("invalid", str(error))
                self._bad_frames += 1
                if self._bad_frames >= _MAX_BAD_FRAMES:
                    raise _Refused(POLICY, f"{_MAX_BAD_FRAMES} frames could not be used") from None
            del message  # the next one may be hours away

    async def _frame(self, principal: Principal, frame: Mapping[str, Any]) -> Principal:
        """Answer one frame; who the client is from now on."""
        match frame.get("type"):
            case "subscribe":
                await self._subscribe(principal, frames.positions(frame.get("stores")))
            case "unsubscribe":
                await self._unsubscribe(frames.store_list(frame.get("stores")))
            case "ping":
                self._tell({"type": "pong"})
            case "authenticate":
                return await self._renew(frames.token_of(frame))
            case kind:
                raise InvalidInput(
                    f"type is {quoted(kind)}: send subscribe, unsubscribe, authenticate or ping"
                )
        return principal

    async def _subscribe(self, principal: Principal, wanted: dict[str, int | None]) -> None:
        if len(self._hub.watched_by(self._client) | wanted.keys()) > _MAX_SUBSCRIPTIONS:
            raise InvalidInput(f"at most {_MAX_SUBSCRIPTIONS} subscriptions per connection")
        hidden = [each for each in wanted if not principal.sees(each)]
        unknown = await self._hub.subscribe(
            self._client, {k: v for k, v in wanted.items() if principal.sees(k)}
        )
        if hidden:
            self._error("forbidden", "this token is not for these stores", hidden)
        if unknown:
            self._error("unknown-store", "there are no such stores", unknown)

    async def _unsubscribe(self, stores: Sequence[str]) -> None:
        await self._hub.unsubscribe(self._client, stores)
        self._tell({"type": "unsubscribed", "stores": list(stores)})

    def _error(
        self, code: Literal["forbidden", "unknown-store", "unavailable", "invalid"],
        message: str, stores: Sequence[str] = (),
    ) -> None:  # fmt: skip
        error: frames.Error = {"type": "error", "code": code, "message": message}
        if stores:
            error["stores"] = list(stores)
        self._tell(error)

    def _tell(
        self, answer: frames.Authenticated | frames.Unsubscribed | frames.Pong | frames.Error
    ) -> None:
        self._client.tell(frames.encode(answer))

    def _slow(self) -> None:
        self.close(SLOW, "too slow: reconnect and resume from your last seq")


async def part(
    ws: web.WebSocketResponse, transport: asyncio.Transport, code: int, reason: str, within_s: float
) -> None:
    """Send the close frame, unless one was sent, behind what is written already; then drop a peer
    that has not taken it all and answered within `within_s`."""
    message = reason.encode()[:120].decode(errors="ignore").encode()
    try:
        async with asyncio.timeout(within_s):
            await ws.close(code=code, message=message, drain=False)
            await flushed(transport)
    except TimeoutError:
        pass
    finally:
        if transport.get_write_buffer_size():
            transport.abort()
