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
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web

from solocron.errors import InvalidInput, StorageUnavailable
from solocron.notifications.client import Client, Turn
from solocron.notifications.hub import Hub
from solocron.stores.model import is_store_id
from solocron.web.auth import Authenticator, Forbidden, Principal, Unauthenticated
from solocron.web.guard import address, bearer, check_origin, quoted
from solocron.web.seats import Full, Seats

log = logging.getLogger("solocron.web")

PROTOCOL = "solocron.v1"
GOING_AWAY, POLICY, INTERNAL = 1001, 1008, 1011
UNAUTHENTICATED, FORBIDDEN, SLOW, TOO_MANY = 4401, 4403, 4408, 4429

MAX_FRAME = 1024 * 1024
_MAX_STORES = 10_000
_MAX_SUBSCRIPTIONS = 20_000
_MAX_BAD_FRAMES = 10
_AUTHENTICATE_WITHIN_S = 10.0
_CLOSE_WITHIN_S = 10.0  # a slow client must first take what was written before the close frame
_TURN_AWAY_WITHIN_S = 2.0
_DRAIN_WITHIN_S = 2.0
_FLUSH_POLL_S = 0.02
_HEARTBEAT_S = 25.0
_RECONNECT_WITHIN_MS = 5_000


class Sockets:
    """The open WebSockets of this server, at most `limit` of them, and so many of one token and of
    one address (0: no limit)."""

    def __init__(
        self,
        hub: Hub,
        authenticator: Authenticator,
        *,
        origins: frozenset[str],
        limit: int,
        per_token: int,
        per_address: int,
    ) -> None:
        self._hub = hub
        self._authenticator = authenticator
        self._origins = origins
        self._limit = limit
        self._of_token = Seats(per_token, of="token", setting="SOLOCRON_MAX_CONNECTIONS_PER_TOKEN")
        self._of_address = Seats(
            per_address, of="address", setting="SOLOCRON_MAX_CONNECTIONS_PER_ADDRESS"
        )
        self._open: set[Socket] = set()
        self._none_open = asyncio.Event()
        self._draining = False
        self._turn = Turn()

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
            await part(ws, transport, code, "reconnect later", _TURN_AWAY_WITHIN_S)
            return ws
        try:
            with self._of_address.seat(address(request)):
                await self._serve(ws, transport, header)
        except Full as full:
            await part(ws, transport, TOO_MANY, str(full), _TURN_AWAY_WITHIN_S)
        return ws

    async def _serve(
        self, ws: web.WebSocketResponse, transport: asyncio.Transport, header: str | None
    ) -> None:
        socket = Socket(ws, transport, self._turn, self._hub, self._authenticator, self._of_token)
        self._open.add(socket)
        self._none_open.clear()
        try:
            await socket.serve(header)
        finally:
            self._open.discard(socket)
            if not self._open:
                self._none_open.set()

    def accept(self) -> None:
        """Let clients in, again after a drain."""
        self._draining = False

    async def drain(self) -> None:
        """Close every socket with 1001 and a time to reconnect after, spread over 5 s; those that
        do not answer within 2 s are dropped. Lets nobody in any more."""
        self._draining = True
        for socket in self._open:
            socket.close(GOING_AWAY, f"reconnect-after-ms={random.randrange(_RECONNECT_WITHIN_MS)}")
        for _ in range(2):
            if self._open:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_WITHIN_S):
                        await self._none_open.wait()
            for socket in self._open:
                socket.drop()


class _Refused(Exception):
    """This connection ends, with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Socket:
    """One connection: what its client may see, and the frames it sends.

    All of it happens in the task that called `serve`: `close` interrupts what that task waits for,
    so that one task only reads, and sends the close frame.
    """

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        turn: Turn,
        hub: Hub,
        authenticator: Authenticator,
        seats: Seats,
    ) -> None:
        self._ws = ws
        self._transport = transport
        self._hub = hub
        self._authenticator = authenticator
        self._seats = seats
        self._client = Client(transport, turn, on_slow=self._slow)
        self._interrupt: asyncio.Timeout | None = None
        self._ending: tuple[int, str] | None = None
        self._bad_frames = 0

    async def serve(self, header: str | None) -> None:
        """Authenticate, then answer frames until the client or the server closes."""
        expiry: asyncio.TimerHandle | None = None
        try:
            async with asyncio.timeout(None) as self._interrupt:
                principal = await self._authenticate(header)
                expiry = self._close_at_expiry(principal)
                with self._seats.seat(principal.token):
                    await self._frames(principal)
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
            if expiry is not None:
                expiry.cancel()
            await self._hub.remove(self._client)
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

    async def _authenticate(self, header: str | None) -> Principal:
        try:
            if header is None and not self._authenticator.is_open:
                header = await self._first_frame()
            principal = self._authenticator.authenticate(header)
        except Unauthenticated as error:
            raise _Refused(UNAUTHENTICATED, str(error)) from None
        if not principal.may("notifications:read"):
            raise _Refused(FORBIDDEN, "this needs a token with scope 'notifications:read'")
        return principal

    async def _first_frame(self) -> str:
        try:
            async with asyncio.timeout(_AUTHENTICATE_WITHIN_S):
                message = await self._ws.receive()
        except TimeoutError:
            raise Unauthenticated(f"no token within {_AUTHENTICATE_WITHIN_S:g} s") from None
        try:
            frame = parse(message.data) if message.type is WSMsgType.TEXT else {}
        except InvalidInput:  # not quoted: it may be a bare token
            frame = {}
        token = frame.get("token")
        if frame.get("type") != "authenticate" or not isinstance(token, str):
            raise Unauthenticated('the first frame must be {"type":"authenticate","token":"..."}')
        return token

    def _close_at_expiry(self, principal: Principal) -> asyncio.TimerHandle | None:
        seconds = self._authenticator.seconds_left(principal)
        if seconds is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(seconds, self.close, UNAUTHENTICATED, "the token has expired")

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
                    raise _Refused(POLICY, f"{_MAX_BAD_FRAMES} frames could not be used") from None

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
            raise InvalidInput(f"type is {quoted(kind)}: send subscribe or unsubscribe")

    def _error(self, code: str, message: str, stores: Sequence[str] = ()) -> None:
        body: dict[str, Any] = {"type": "error", "code": code, "message": message}
        if stores:
            body["stores"] = list(stores)
        self._client.tell(json.dumps(body, ensure_ascii=False).encode())

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
            while transport.get_write_buffer_size():  # noqa: ASYNC110 -- no event tells of it
                await asyncio.sleep(_FLUSH_POLL_S)
    except TimeoutError:
        pass
    finally:
        if transport.get_write_buffer_size():
            transport.abort()


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
                f"subscribe: last seq of store {store_id!r} is {quoted(seq)}: "
                "give a whole number, or null for only new ones"
            )
    return stores
