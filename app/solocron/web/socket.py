"""The WebSocket `/ws`, subprotocol `solocron.v1`.

The client sends `{"type": "subscribe", "stores": {"<id>": <last seq or null>}}` or `unsubscribe`
with a list, and first of all `{"type": "authenticate", "token": ...}` unless its request carried an
Authorization header. The server answers `subscribed`, then sends each notification as one
CloudEvent per text frame, and `{"type": "error", "code", "message"}` for a frame it cannot use.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import WSMsgType, web

from solocron.errors import InvalidInput, StorageUnavailable
from solocron.notifications.client import Client, text_frame
from solocron.notifications.hub import Hub
from solocron.stores.model import is_store_id
from solocron.web.auth import Authenticator, Forbidden, Principal, Unauthenticated
from solocron.web.guard import bearer, check_origin

log = logging.getLogger("solocron.web")

PROTOCOL = "solocron.v1"
GOING_AWAY, POLICY, UNAUTHENTICATED, FORBIDDEN, SLOW, TOO_MANY = 1001, 1008, 4401, 4403, 4408, 4429

MAX_FRAME = 1024 * 1024
_MAX_STORES = 10_000
_MAX_SUBSCRIPTIONS = 20_000
_MAX_BAD_FRAMES = 10
_AUTHENTICATE_WITHIN_S = 10.0
_CLOSE_WITHIN_S = 2.0
_HEARTBEAT_S = 25.0
_RECONNECT_WITHIN_MS = 5_000


class Sockets:
    """The open WebSockets of this server, at most `limit` of them."""

    def __init__(
        self, hub: Hub, authenticator: Authenticator, *, origins: frozenset[str], limit: int
    ) -> None:
        self._hub = hub
        self._authenticator = authenticator
        self._origins = origins
        self._limit = limit
        self._open: set[Socket] = set()
        self._draining = False

    @property
    def open(self) -> int:
        """How many sockets are open."""
        return len(self._open)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one client until it goes."""
        check_origin(request, self._origins)
        ws = web.WebSocketResponse(
            protocols=(PROTOCOL,), heartbeat=_HEARTBEAT_S, compress=False, max_msg_size=MAX_FRAME,
            timeout=_CLOSE_WITHIN_S,
        )  # fmt: skip
        header = bearer(request)
        await ws.prepare(request)
        transport = request.transport
        if transport is None:
            return ws
        if self._draining or len(self._open) >= self._limit:
            code = GOING_AWAY if self._draining else TOO_MANY
            await ws.close(code=code, message=b"reconnect later")
            return ws
        socket = Socket(ws, transport, self._hub, self._authenticator)
        self._open.add(socket)
        try:
            await socket.serve(header)
        finally:
            self._open.discard(socket)
        return ws

    async def drain(self) -> None:
        """Close every socket with 1001 and a time to reconnect after, spread over 5 s."""
        self._draining = True

        async def close(socket: Socket) -> None:
            after = random.randrange(_RECONNECT_WITHIN_MS)
            await socket.close(GOING_AWAY, f"reconnect-after-ms={after}")

        await asyncio.gather(*(close(each) for each in self._open), return_exceptions=True)


class Socket:
    """One connection: what its client may see, and the frames it sends."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        hub: Hub,
        authenticator: Authenticator,
    ) -> None:
        self._ws = ws
        self._transport = transport
        self._hub = hub
        self._authenticator = authenticator
        self._client = Client(transport, on_slow=self._slow)
        self._closing: asyncio.Task[None] | None = None
        self._bad_frames = 0

    async def serve(self, header: str | None) -> None:
        """Authenticate, then answer frames until the client or the server closes."""
        expiry: asyncio.TimerHandle | None = None
        try:
            principal = await self._authenticate(header)
            if principal is None:
                return
            if not principal.may("notifications:read"):
                await self.close(FORBIDDEN, "this needs a token with scope 'notifications:read'")
                return
            expiry = self._close_at_expiry(principal)
            await self._frames(principal)
        finally:
            if expiry is not None:
                expiry.cancel()
            await self._hub.remove(self._client)
            if self._closing is not None:
                await asyncio.gather(self._closing, return_exceptions=True)

    async def _authenticate(self, header: str | None) -> Principal | None:
        try:
            if header is None and not self._authenticator.is_open:
                header = await self._first_frame()
            return self._authenticator.authenticate(header)
        except Unauthenticated as error:
            await self.close(UNAUTHENTICATED, str(error))
        except TimeoutError:
            seconds = f"{_AUTHENTICATE_WITHIN_S:g}"
            await self.close(UNAUTHENTICATED, f"no token within {seconds} s")
        return None

    async def _first_frame(self) -> str:
        message = await self._ws.receive(_AUTHENTICATE_WITHIN_S)
        try:
            frame = parse(message.data) if message.type is WSMsgType.TEXT else {}
        except InvalidInput as error:
            raise Unauthenticated(str(error)) from None
        token = frame.get("token")
        if frame.get("type") != "authenticate" or not isinstance(token, str):
            raise Unauthenticated('the first frame must be {"type":"authenticate","token":"..."}')
        return token

    def _close_at_expiry(self, principal: Principal) -> asyncio.TimerHandle | None:
        seconds = self._authenticator.seconds_left(principal)
        if seconds is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(seconds, self._close_soon, UNAUTHENTICATED, "the token has expired")

    async def _frames(self, principal: Principal) -> None:
        async for message in self._ws:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise InvalidInput("a binary frame: send JSON in text frames")
                await self._frame(principal, parse(message.data))
            except Forbidden as error:
                self._error("forbidden", str(error))
            except StorageUnavailable:
                self._error("unavailable", "the database is not reachable; subscribe again later")
            except InvalidInput as error:
                self._error("invalid", str(error))
                self._bad_frames += 1
                if self._bad_frames >= _MAX_BAD_FRAMES:
                    await self.close(POLICY, f"{_MAX_BAD_FRAMES} frames could not be used")

    async def _frame(self, principal: Principal, frame: Mapping[str, Any]) -> None:
        kind = frame.get("type")
        if kind == "subscribe":
            wanted = positions(frame.get("stores"))
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
        elif kind == "unsubscribe":
            stores = frame.get("stores")
            if not isinstance(stores, list) or not all(isinstance(each, str) for each in stores):
                raise InvalidInput("unsubscribe: stores must be a list of store ids")
            await self._hub.unsubscribe(self._client, stores)
        else:
            raise InvalidInput(
                f"type is {str(kind)[:50]!r}: send subscribe or unsubscribe"
            )  # fmt: skip

    def _error(self, code: str, message: str, stores: Sequence[str] = ()) -> None:
        body: dict[str, Any] = {"type": "error", "code": code, "message": message}
        if stores:
            body["stores"] = list(stores)
        self._client.send(text_frame(json.dumps(body, ensure_ascii=False).encode()))

    # -- closing ---------------------------------------------------------------------------

    def _slow(self) -> None:
        self._close_soon(SLOW, "too slow: reconnect and resume from your last seq")

    def _close_soon(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self.close(code, reason))

    async def close(self, code: int, reason: str) -> None:
        """Write nothing more, send the close frame, and drop a peer that does not answer it."""
        self._client.close()
        try:
            async with asyncio.timeout(2 * _CLOSE_WITHIN_S):
                await self._ws.close(code=code, message=reason.encode()[:120], drain=False)
        except TimeoutError:
            pass
        if self._transport.get_write_buffer_size():
            self._transport.abort()


def parse(text: str) -> dict[str, Any]:
    """A frame's JSON object. Raises InvalidInput."""
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"not JSON: {text[:80]!r}") from None
    if not isinstance(frame, dict):
        raise InvalidInput(f"a JSON object is expected, not {text[:80]!r}")
    return frame


def positions(stores: object) -> dict[str, int | None]:
    """The `stores` of a subscribe: id to last seq, or null. Raises InvalidInput."""
    if not isinstance(stores, dict) or not stores:
        raise InvalidInput('subscribe: stores must be an object such as {"42": 17, "43": null}')
    if len(stores) > _MAX_STORES:
        raise InvalidInput(f"subscribe: {len(stores)} stores; at most {_MAX_STORES} in a frame")
    for store_id, seq in stores.items():
        if not is_store_id(store_id):
            raise InvalidInput(f"subscribe: no store can have the id {store_id[:64]!r}")
        whole = isinstance(seq, int) and not isinstance(seq, bool) and 0 <= seq < 2**63
        if seq is not None and not whole:
            raise InvalidInput(
                f"subscribe: last seq of store {store_id!r} is {str(seq)[:40]!r}: "
                "give a whole number, or null for only new ones"
            )
    return stores
