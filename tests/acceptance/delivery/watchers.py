"""The clients: each connects to any server, takes what it is sent, and comes back where it was."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import suppress

import aiohttp
import picows
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from acceptance.delivery.plan import STREAM, Seat
from acceptance.delivery.record import Record

GOING_AWAY, SLOW = 1001, 4408

_PAUSE_S = (0.02, 0.3)
_CONNECT_S = 15.0
_NOTIFICATION = b'{"specversion"'
_REFUSALS = (picows.WSError, aiohttp.ClientError, OSError, TimeoutError)


class Servers:
    """The ports of the servers there are at the moment, as far as clients were told."""

    def __init__(self) -> None:
        self._ports: list[int] = []
        self._some = asyncio.Event()

    def are(self, ports: list[int]) -> None:
        """From now on these."""
        self._ports = ports
        (self._some.set if ports else self._some.clear)()

    async def one(self, luck: random.Random) -> int:
        """Any of them, once there is one."""
        await self._some.wait()
        return luck.choice(self._ports)


class Watcher:
    """One client; `cut` has it lose its connection."""

    def __init__(self, seat: Seat, servers: Servers, seed: int) -> None:
        self.name = seat.name
        self.record = Record(seat.topics)
        self._servers = servers
        self._luck = random.Random(f"{seat.name} of {seed}")
        self._pause_s: float | None = None
        self._failures = 0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Connect, take what comes until the connection ends, go elsewhere; until cancelled."""
        while True:
            port = await self._servers.one(self._luck)
            before = self.record.counts["connections"]
            with suppress(*_REFUSALS):
                await self._session(port)
            self.record.lost(self._loop.time())
            if self.record.counts["connections"] > before:
                self._failures = 0
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """How long to stay away, in s: as long as the server said, else the longer the more often
        it was in vain."""
        said, self._pause_s = self._pause_s, None
        shortest, longest = (each * 2**self._failures for each in _PAUSE_S)
        self._failures = min(self._failures + 1, 4)
        return self._luck.uniform(shortest, longest) if said is None else said

    async def _session(self, port: int) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    def _answer(self, text: bytes) -> bool:
        """Take what is no notification; False when the connection is of no use."""
        answer = json.loads(text)
        if answer["type"] == "subscribed":
            self.record.subscribed(text, self._loop.time())
            return True
        if answer.get("code") != "unavailable":
            self.record.error(text.decode())
        return False

    def _closed(self, code: int, reason: str) -> None:
        """The server ends the connection, and may say when to come back."""
        self.record.counts[f"closed {code}"] += 1
        _, is_said, delay_ms = reason.partition("reconnect-after-ms=")
        if code == GOING_AWAY and is_said:
            self._pause_s = int(delay_ms) / 1000
        elif code not in (GOING_AWAY, SLOW):
            self.record.error(f"closed with {code}: {reason}")


class SocketWatcher(Watcher):
    """By WebSocket."""

    _transport: WSTransport | None = None

    async def _session(self, port: int) -> None:
        transport, _ = await picows.ws_connect(
            lambda: _Ears(self), f"ws://127.0.0.1:{port}/ws",
            websocket_handshake_timeout=_CONNECT_S,
            extra_headers={"Sec-WebSocket-Protocol": "solocron.v1"},
        )  # fmt: skip
        await transport.wait_disconnected()

    def opened(self, transport: WSTransport) -> None:
        """Ask for what comes after its last seqs."""
        self._transport = transport
        frame = {"type": "subscribe", "stores": self.record.last}
        transport.send(WSMsgType.TEXT, json.dumps(frame).encode())

    def hear(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take one frame."""
        if frame.msg_type is WSMsgType.TEXT:
            payload = frame.get_payload_as_bytes()
            if payload.startswith(_NOTIFICATION):
                self.record.take(payload, self._loop.time())
            elif not self._answer(payload):
                transport.disconnect()
        elif frame.msg_type is WSMsgType.CLOSE:
            self._closed(int(frame.get_close_code()), (frame.get_close_message() or b"").decode())
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def cut(self) -> None:
        """See Watcher."""
        if self._transport is not None:
            self._transport.disconnect(False)


class _Ears(WSListener):  # type: ignore[misc]  # an extension type
    """Hands one connection's frames to its client."""

    def __init__(self, watcher: SocketWatcher) -> None:
        super().__init__()
        self._watcher = watcher

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._watcher.opened(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self._watcher.hear(transport, frame)


class StreamWatcher(Watcher):
    """By event stream: it comes back with the last `id` it was sent."""

    def __init__(
        self, seat: Seat, servers: Servers, seed: int, http: aiohttp.ClientSession
    ) -> None:
        super().__init__(seat, servers, seed)
        self._http = http
        self._last_id = ""
        self._response: aiohttp.ClientResponse | None = None

    async def _session(self, port: int) -> None:
        begin = "" if self._last_id else ":0"
        query = ",".join(topic + begin for topic in self.record.last)
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        async with self._http.get(
            f"http://127.0.0.1:{port}/events", params={"stores": query}, headers=headers
        ) as self._response:
            if self._response.status == 503:  # it drains, or its database is away
                return
            self._response.raise_for_status()
            try:
                await self._listen(self._response.content)
            finally:
                self._response = None
                if self._last_id:
                    self.record.positions(self._last_id)

    async def _listen(self, stream: aiohttp.StreamReader) -> None:
        while True:
            block = await stream.readuntil(b"\n\n")
            if not block.endswith(b"\n\n"):  # the end
                return
            fields = dict(line.split(b": ", 1) for line in block[:-2].split(b"\n"))
            if not self._hear(fields):
                return

    def _hear(self, fields: Mapping[bytes, bytes]) -> bool:
        """Take one event; False at the end."""
        data = fields.get(b"data", b"")
        kind = fields.get(b"event", b"")
        if b"retry" in fields:
            self._pause_s = int(fields[b"retry"]) / 1000 * self._luck.random()
        if kind == b"end":
            end = json.loads(data)
            self._closed(end["code"], end["reason"])
            return False
        if b"id" in fields:
            self._last_id = fields[b"id"].decode()
        if kind == b"subscribed":
            return self._answer(data)
        if data:
            self.record.take(data, self._loop.time())
        return True

    def cut(self) -> None:
        """See Watcher."""
        if self._response is not None and self._response.connection is not None:
            transport = self._response.connection.transport
            if isinstance(transport, asyncio.Transport):
                transport.abort()


def watcher(seat: Seat, servers: Servers, seed: int, http: aiohttp.ClientSession) -> Watcher:
    """The client for a seat."""
    if seat.wire == STREAM:
        return StreamWatcher(seat, servers, seed, http)
    return SocketWatcher(seat, servers, seed)
