"""A client of subprotocol `solocron.v1`, whatever carries its frames: `web.socket` or `web.asgi`.

The client sends `{"type": "subscribe", "stores": {"<id>": <last seq or null>}}` or `unsubscribe`
with a list, and first of all `{"type": "authenticate", "token": ...}` unless its request carried
the token in an Authorization header; at any later time that renews its token. The server answers
each (`frames` has their types), then sends each notification as one CloudEvent per text frame, and
`{"type": "error", "code", "message"}` for a frame it cannot use.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal

from solocron.errors import InvalidInput, StorageUnavailable
from solocron.notifications.client import Receiver
from solocron.notifications.hub import Hub
from solocron.web import frames
from solocron.web.auth import Authenticator, Forbidden, Principal, Unauthenticated
from solocron.web.connections import GOING_AWAY, UNAUTHENTICATED, Connections, Draining
from solocron.web.guard import Request, basic_password, bearer, own_page_token, quoted
from solocron.web.seats import Full

log = logging.getLogger("solocron.web")

PROTOCOL = "solocron.v1"
POLICY, TOO_LARGE, INTERNAL = 1008, 1009, 1011
FORBIDDEN, SLOW, TOO_MANY = 4403, 4408, 4429

MAX_FRAME = 1024 * 1024
_MAX_SUBSCRIPTIONS = 20_000
_MAX_BAD_FRAMES = 10
_AUTHENTICATE_WITHIN_S = 10.0
CLOSE_WITHIN_S = 10.0  # a slow client must first take what was written before the close frame
TURN_AWAY_WITHIN_S = 2.0


def token_of(request: Request, authenticator: Authenticator) -> str | None:
    """That of the request: the bearer's, or a password which is a token, of a page of this host.
    Any other password is not for us but for a proxy, say."""
    if basic_password(request) is None:
        return bearer(request)
    try:
        token = own_page_token(request)
        authenticator.authenticate(token)
    except (Forbidden, Unauthenticated):
        return None
    return token


class Refused(Exception):
    """This connection ends, with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Session(ABC):
    """One connection: what its client may see, and the frames it sends. `token` is that of its
    request; as there are thousands of connections, none keeps what it needs no more.

    All of it happens in the task that called `serve`: `close` interrupts what that task waits for,
    so that one task only reads, and sends the close frame.
    """

    __slots__ = (
        "_authenticator", "_bad_frames", "_client", "_connections", "_ending", "_hub", "_interrupt",
        "_seat", "_token",
    )  # fmt: skip

    kind = "websocket"

    def __init__(
        self, client: Receiver, connections: Connections, hub: Hub, authenticator: Authenticator,
        token: str | None,
    ) -> None:  # fmt: skip
        self._client = client
        self._connections = connections
        self._hub = hub
        self._authenticator = authenticator
        self._token = token
        self._interrupt: asyncio.Timeout | None = None
        self._ending: tuple[int, str] | None = None
        self._bad_frames = 0
        self._seat = ""

    # -- what carries it ---------------------------------------------------------------------

    @abstractmethod
    def _next(self) -> Awaitable[Any]:
        """What comes next from the client."""

    @abstractmethod
    def _read(self, message: Any) -> str | bytes | None:
        """That as a text frame or a binary one; None at the end. Raises Refused."""

    @abstractmethod
    async def _part(self, code: int, reason: str, within_s: float) -> None:
        """Send the close frame, unless one was sent, and have the connection end in that time."""

    @abstractmethod
    def drop(self) -> None:
        """Cut the connection."""

    # -- its life ----------------------------------------------------------------------------

    async def serve(self, address: str) -> None:
        """Turn the client away, or answer its frames until it or the server closes."""
        try:
            self._connections.check()
            self._connections.admit(self, address)
        except Draining as draining:
            await self._part(GOING_AWAY, str(draining), TURN_AWAY_WITHIN_S)
        except Full as full:
            await self._part(TOO_MANY, str(full), TURN_AWAY_WITHIN_S)
        else:
            try:
                await self._answer()
            finally:
                self._connections.leave(self)

    async def _answer(self) -> None:
        try:
            async with asyncio.timeout(None) as self._interrupt:
                await self._frames(await self._authenticate())
        except Refused as refused:
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
        code, reason = self._ending or (1000, "")
        await self._part(code, reason, CLOSE_WITHIN_S)

    def close(self, code: int, reason: str) -> None:
        """Write nothing more, and have `serve` end with this code."""
        if self._ending is not None:
            return
        self._ending = code, reason
        self._client.close()
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())

    async def _authenticate(self) -> Principal:
        token, self._token = self._token, None
        if token is not None or self._authenticator.is_open:
            return self._admit(token)
        try:
            async with asyncio.timeout(_AUTHENTICATE_WITHIN_S):
                data = self._read(await self._next())
        except TimeoutError:
            within = f"no token within {_AUTHENTICATE_WITHIN_S:g} s"
            raise Refused(UNAUTHENTICATED, within) from None
        try:
            frame = frames.parse(data) if isinstance(data, str) else {}
        except InvalidInput:  # not quoted: it may be a bare token
            frame = {}
        token = frames.token_of(frame)
        if token is None:
            raise Refused(
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
            raise Refused(UNAUTHENTICATED, str(error)) from None
        if not principal.may("notifications:read"):
            raise Refused(FORBIDDEN, "this needs a token with scope 'notifications:read'")
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
        while (data := self._read(await self._next())) is not None:
            try:
                if isinstance(data, bytes):
                    raise InvalidInput("a binary frame: send JSON in text frames")
                principal = await self._frame(principal, frames.parse(data))
            except StorageUnavailable:
                self._error("unavailable", "the database is not reachable; subscribe again later")
            except InvalidInput as error:
                self._error("invalid", str(error))
                self._bad_frames += 1
                if self._bad_frames >= _MAX_BAD_FRAMES:
                    raise Refused(POLICY, f"{_MAX_BAD_FRAMES} frames could not be used") from None
            del data  # the next one may be hours away

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


def shortened(reason: str) -> str:
    """A reason as a close frame has room for it."""
    return reason.encode()[:120].decode(errors="ignore")
