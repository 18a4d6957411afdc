"""The open connections of this server, whatever their wire: how many there may be, and their end
when the server drains."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from contextlib import suppress
from typing import Protocol

from solocron.notifications.client import Turn
from solocron.web.seats import Full, Seats

GOING_AWAY, UNAUTHENTICATED = 1001, 4401

KINDS = ("websocket", "event-stream")

_FLUSH_POLL_S = 0.02
_DRAIN_WITHIN_S = 2.0
_RECONNECTS_PER_S = 1000  # what the servers that stay are asked to take of one that goes
_SPREAD_MS = (5_000, 30_000)


class Connection(Protocol):
    """An open connection."""

    @property
    def kind(self) -> str:
        """Its wire: one of KINDS."""

    def close(self, code: int, reason: str) -> None:
        """Have it end, with a close code and what the client should know."""

    def drop(self) -> None:
        """Cut it."""


class Draining(Exception):
    """This server lets nobody in any more."""


class Ends:
    """Ends connections with their tokens: by one timer for all of them, which would cost 500 bytes
    for each."""

    def __init__(self) -> None:
        self._at: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def set(self, connection: Connection, seconds: float | None) -> None:
        """Have it end with its token, which is good for so many s (None: for ever)."""
        self._at.pop(connection, None)
        if seconds is not None:
            at = self._at[connection] = asyncio.get_running_loop().time() + seconds
            if self._timer is None or at < self._due:
                self._wait(at)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self._at.pop(connection, None)
        if not self._at and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = until
        self._timer = asyncio.get_running_loop().call_at(until, self._end)

    def _end(self) -> None:
        self._timer = None
        for connection in [each for each, at in self._at.items() if at <= self._due]:
            del self._at[connection]
            connection.close(UNAUTHENTICATED, "the token has expired")
        if self._at:
            self._wait(min(self._at.values()))


class Connections:
    """At most `limit` connections, and so many of one token and of one address (0: no limit)."""

    def __init__(self, *, limit: int, per_token: int, per_address: int) -> None:
        self._limit = limit
        self.of_token = Seats(per_token, of="token", setting="SOLOCRON_MAX_CONNECTIONS_PER_TOKEN")
        self._of_address = Seats(
            per_address, of="address", setting="SOLOCRON_MAX_CONNECTIONS_PER_ADDRESS"
        )
        self.turn = Turn()
        self.ends = Ends()
        self._open: dict[Connection, str] = {}  # to the address it is counted for
        self._none_open = asyncio.Event()
        self._draining = False

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    def kinds(self) -> dict[str, int]:
        """How many there are of each kind."""
        count = Counter(each.kind for each in self._open)
        return {kind: count[kind] for kind in KINDS}

    def check(self) -> None:
        """Raise Draining or Full when nobody is let in."""
        if self._draining:
            raise Draining("this server is going away: reconnect")
        if len(self._open) >= self._limit:
            raise Full("this server has too many connections: reconnect later")

    def admit(self, connection: Connection, address: str) -> None:
        """Count it as open until it leaves. Raises Full."""
        self._of_address.take(address)
        self._open[connection] = sys.intern(address)  # of many, one string
        self._none_open.clear()

    def leave(self, connection: Connection) -> None:
        """It is open no more."""
        self._of_address.leave(self._open.pop(connection))
        if not self._open:
            self._none_open.set()

    def accept(self) -> None:
        """Let clients in, again after a drain."""
        self._draining = False

    async def drain(self) -> None:
        """Close each with 1001 and a time to reconnect after, evenly spread; those that do not
        answer within 2 s are dropped. Lets nobody in any more."""
        self._draining = True
        leaving = list(self._open)
        for connection, delay_ms in zip(leaving, reconnect_delays(len(leaving)), strict=True):
            connection.close(GOING_AWAY, f"reconnect-after-ms={delay_ms}")
        for _ in range(2):
            if self._open:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_WITHIN_S):
                        await self._none_open.wait()
            for connection in self._open:
                connection.drop()


async def flushed(transport: asyncio.Transport) -> None:
    """Wait until the peer's socket has taken what was written."""
    while transport.get_write_buffer_size():  # noqa: ASYNC110 -- no event tells of it
        await asyncio.sleep(_FLUSH_POLL_S)


def reconnect_delays(count: int) -> list[int]:
    """How long each of `count` clients should stay away, in ms: one in each of as many equal parts
    of 5 s, or of as long as 1,000 a second take, up to 30 s, in any order."""
    shortest, longest = _SPREAD_MS
    spread = min(max(shortest, count * 1000 // _RECONNECTS_PER_S), longest)
    delays = [int((number + random.random()) * spread / count) for number in range(count)]
    random.shuffle(delays)
    return delays
