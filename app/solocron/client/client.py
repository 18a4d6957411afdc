"""The client: connects, sends what the session asks and feeds it what is heard.

All of it happens while somebody waits for the next notification: there is no task and no queue. So
a user who is slow is waited for by TCP, and a server that gives such a client up (4408) is resumed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import WSMsgType

from solocron.client import reconnect
from solocron.client.reconnect import Backoff, Refused
from solocron.client.session import (
    PING,
    Authenticated,
    Event,
    Gap,
    InvalidFrame,
    Item,
    Session,
    Unavailable,
    wanted,
)
from solocron.errors import InvalidInput

log = logging.getLogger("solocron.client")

Token = str | Callable[[], str | Awaitable[str]]

_PROTOCOL = "solocron.v1"
_CLOSE_WITHIN_S = 2.0
_RENEW_AT = 0.8  # of a token's time
_MIN_PAUSE_S = 1.0
_FAULTS = (aiohttp.ClientError, OSError, TimeoutError)


def warn(gap: Gap) -> None:
    """Log what was missed."""
    log.warning(
        "store %s: what came after %d cannot be had any more; the newest is %d",
        gap.store_id, gap.last, gap.newest,
    )  # fmt: skip


class Client:
    """The notifications of `stores`, each once and in its store's order, however often a
    connection ends: `async with Client(...) as events`, `async for event in events`.

    `url` is that of `/ws`; of several, the next is tried when one fails. `stores` are ids, or `*`
    for all, each with the last seq seen or None for only new ones: `positions`, given back.
    `token` is one, or a function that makes one, which is called for each connection and before the
    last one's end. `on_gap` hears of notifications that can not be had any more, in their place;
    they are logged by default.

    A server that is silent for `heartbeat_s` is asked, and left when it is for half of that again.
    Pauses before a reconnect are random, up to the first, and later up to the second of `retry_s`,
    or what a server that leaves asks for. A connection is given `within_s`. All in s.

    Iterating raises Refused when reconnecting is of no use, which ends it, and StoresRefused for
    stores that do not exist or are not this token's, after which it can be gone on with.
    """

    def __init__(
        self, url: str | Sequence[str], stores: Mapping[str, int | None] | Iterable[str], *,
        token: Token | None = None, on_gap: Callable[[Gap], None] = warn,
        heartbeat_s: float = 25.0, retry_s: tuple[float, float] = (1.0, 30.0),
        within_s: float = 10.0, http: aiohttp.ClientSession | None = None,
    ) -> None:  # fmt: skip
        self._urls = deque(map(_checked, [url] if isinstance(url, str) else url))
        self._session = Session(wanted(stores))
        self._token = token
        self._on_gap = on_gap
        self._heartbeat_s = heartbeat_s
        self._within_s = within_s
        self._backoff = Backoff(*retry_s, random.random)
        self._http = http
        self._is_own_http = http is None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._items: deque[Item] = deque()
        self._ended = asyncio.Event()
        self._is_iterated = self._is_down = self._is_asked = False
        self._is_denied = False  # the last token was; it may have been an old one
        self._left_at = self._heard_at = self._opened_at = self._next_at = 0.0
        self._renew_at = self._ask_at = float("inf")

    @property
    def positions(self) -> dict[str, int | None]:
        """The last seq of each store that the iteration has returned; None: none yet. A process
        that keeps them, once it has handled that notification, can go on from there."""
        return self._session.positions

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._ws is not None and self._session.accepted

    async def __aenter__(self) -> Self:
        if self._http is None:
            self._http = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()

    async def close(self) -> None:
        """End the iteration and the connection. Safe to call twice, and from another task."""
        self._ended.set()
        await self._leave()
        if self._is_own_http and self._http is not None:
            await self._http.close()

    async def subscribe(self, stores: Mapping[str, int | None] | Iterable[str]) -> None:
        """Watch these stores too. Raises InvalidInput."""
        self._session.subscribe(wanted(stores))
        with suppress(*_FAULTS):  # whoever iterates finds out
            await self._flush()

    async def unsubscribe(self, stores: Iterable[str]) -> None:
        """Watch these stores no more; of them nothing more comes."""
        self._session.unsubscribe([stores] if isinstance(stores, str) else stores)
        with suppress(*_FAULTS):
            await self._flush()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._http is None:
            raise RuntimeError("a Client is iterated within `async with`")
        if self._is_iterated:
            raise RuntimeError("a Client is iterated by one task at a time")
        self._is_iterated = True
        now = asyncio.get_running_loop().time
        self._heard_at += now() - self._left_at  # the user's own time is no silence
        try:
            while not self._ended.is_set():
                if self._items:
                    if (event := self._handle(self._items.popleft())) is not None:
                        return event
                elif self._ws is None:
                    await self._connect(self._http)
                else:
                    await self._hear(self._ws)
            await self._leave()  # it may have been connecting
            raise StopAsyncIteration
        except Refused:
            await self.close()
            raise
        finally:
            self._is_iterated = False
            self._left_at = now()

    # -- a connection's life -----------------------------------------------------------------

    async def _connect(self, http: aiohttp.ClientSession) -> None:
        now = asyncio.get_running_loop().time
        if await self._ends_before(self._next_at):
            return
        try:
            async with asyncio.timeout(self._within_s):
                token = await self._fresh_token()
                ws = await http.ws_connect(
                    self._urls[0], protocols=(_PROTOCOL,), autoping=True,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_WITHIN_S),
                )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            if reconnect.is_final_status(error.status):
                raise Refused(error.status, f"{self._urls[0]}: {error.message}") from None
            self._again(str(error))
        except aiohttp.ClientConnectorCertificateError as error:
            raise Refused(reconnect.LOST, str(error)) from error
        except (*_FAULTS, AssertionError) as error:  # aiohttp's, if cut just after the answer
            self._again(str(error) or type(error).__name__)
        else:
            self._ws, self._is_asked = ws, False
            self._opened_at = self._heard_at = now()
            self._renew_at = self._ask_at = float("inf")
            self._session.opened(token)
            if ws.protocol != _PROTOCOL:
                raise Refused(reconnect.LOST, f"{self._urls[0]} does not speak {_PROTOCOL}")

    async def _ends_before(self, moment: float) -> bool:
        """Wait until then, or for `close`; whether that came first."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(moment):
                await self._ended.wait()
        return self._ended.is_set()

    async def _hear(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Do what is due, and take one message, if one comes in time."""
        loop = asyncio.get_running_loop()
        patience_s = self._heartbeat_s * (1.5 if self._is_asked else 1.0)
        try:
            await self._do_due(loop.time())
            await self._flush()
        except _FAULTS as error:
            await self._lost(reconnect.LOST, f"cannot send: {error}")
            return
        due = min(self._heard_at + patience_s, self._renew_at, self._ask_at)
        try:
            message = await ws.receive(timeout=max(due - loop.time(), 0.001))
        except TimeoutError:
            if loop.time() >= self._heard_at + patience_s:
                await self._doubt(ws, patience_s)
            return
        if message.type is WSMsgType.TEXT:
            self._heard_at, self._is_asked = loop.time(), False
            try:
                self._items.extend(self._session.feed(message.data))
            except InvalidFrame as error:
                await self._lost(reconnect.LOST, str(error))
        elif message.type is WSMsgType.CLOSE:
            await self._lost(int(message.data or reconnect.LOST), message.extra or "")
        elif not self._ended.is_set():
            await self._lost(ws.close_code or reconnect.LOST, "the connection was cut")

    async def _do_due(self, now: float) -> None:
        if now >= self._renew_at:
            await self._renew()
        if now >= self._ask_at:
            self._ask_at = float("inf")
            self._session.ask_again()

    async def _doubt(self, ws: aiohttp.ClientWebSocketResponse, silent_s: float) -> None:
        """Ask a silent server whether it is there; leave one that was asked already."""
        if self._is_asked:
            await self._lost(reconnect.LOST, f"silent for {silent_s:g} s")
            return
        self._is_asked = True
        try:
            await self._send(ws, PING)
        except _FAULTS as error:
            await self._lost(reconnect.LOST, f"cannot send: {error}")

    def _handle(self, item: Item) -> Event | None:
        now = asyncio.get_running_loop().time()
        match item:
            case Event():
                self._good()
                return item
            case Gap():
                self._on_gap(item)
            case Authenticated(expires_in):
                self._is_denied = False
                if expires_in is not None and callable(self._token):
                    self._renew_at = now + max(expires_in * _RENEW_AT, _MIN_PAUSE_S)
            case Unavailable():
                self._ask_at = now + _MIN_PAUSE_S + self._backoff.pause_s()
        return None

    async def _lost(self, code: int, reason: str) -> None:
        """This connection has ended. Raises Refused when another one would, too. All is decided
        before it waits: that may be cancelled."""
        if code == reconnect.UNAUTHENTICATED and callable(self._token) and not self._is_denied:
            self._is_denied = True  # another one is tried, once
        elif reconnect.is_final(code):
            raise Refused(code, reason)
        if asyncio.get_running_loop().time() - self._opened_at > self._backoff.most_s:
            self._good()
        self._again(f"{code} {reason}", reconnect.hint_s(code, reason))
        await self._leave()

    async def _leave(self) -> None:
        ws, self._ws = self._ws, None
        self._session.closed()
        if ws is not None:
            with suppress(*_FAULTS):
                await ws.close()

    def _again(self, reason: str, pause_s: float | None = None) -> None:
        if pause_s is None:
            pause_s = self._backoff.pause_s()
        self._next_at = asyncio.get_running_loop().time() + pause_s
        level = logging.DEBUG if self._is_down else logging.WARNING
        log.log(level, "%s: %s; again in %.1f s", self._urls[0], reason, pause_s)
        self._is_down = True
        self._urls.rotate(-1)

    def _good(self) -> None:
        if self._is_down:
            log.info("%s: connected again", self._urls[0])
        self._is_down = False
        self._backoff.reset()

    # -- what is sent ------------------------------------------------------------------------

    async def _flush(self) -> None:
        while self._ws is not None and (frame := self._session.outgoing()) is not None:
            await self._send(self._ws, frame)

    async def _send(self, ws: aiohttp.ClientWebSocketResponse, frame: str) -> None:
        async with asyncio.timeout(self._within_s):
            await ws.send_str(frame)

    async def _fresh_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        made = self._token()
        return await made if inspect.isawaitable(made) else made

    async def _renew(self) -> None:
        """Go on with another token; where none can be had, this one is still good for a while."""
        self._renew_at = asyncio.get_running_loop().time() + _MIN_PAUSE_S
        try:
            async with asyncio.timeout(self._within_s):
                token = await self._fresh_token()
        except _FAULTS as error:
            log.warning("no new token: %s", str(error) or type(error).__name__)
            return
        if token is not None:
            self._renew_at = float("inf")
            self._session.authenticate(token)


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss", "http", "https") or not parts.hostname:
        raise InvalidInput(f"url {url[:200]!r}: give one such as wss://host/ws")
    return url
