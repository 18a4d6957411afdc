"""Bytes of any kind at `/ws` of a real server: it goes on, others are served, the log is clean."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from test_web import STORE, Api, serving, token

from clients import Listener, connected, subscribe
from raw import CLOSE, PING, TEXT
from solocron.web.session import MAX_FRAME

# The server, in another thread, may use the random module meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

CONTINUATION, BINARY = 0, 2
HEAD = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
BEARER = f"Authorization: Bearer {token()}\r\n"
fuzz = settings(
    derandomize=True, deadline=None, database=None, max_examples=150, phases=[Phase.explicit,
    Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True,
    says: int | None = None,
) -> bytes:  # fmt: skip
    """A frame of a client, wrong where it is told to be; `says` is the length it claims."""
    size = len(payload) if says is None else says
    first, bit = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,)), 0x80 if masked else 0
    if size < 126:
        length = bytes((bit | size,))
    elif size < 65_536:
        length = struct.pack("!BH", bit | 126, size)
    else:
        length = struct.pack("!BQ", bit | 127, size)
    mask = os.urandom(4) if masked else b""
    body = bytes(each ^ mask[i % 4] for i, each in enumerate(payload)) if masked else payload
    return first + length + mask + body


@dataclass
class Witness:
    """A well-behaved client that has to hear of every change, whatever others send."""

    api: Api
    ws: aiohttp.ClientWebSocketResponse
    heard: Listener

    async def fuzzed(self, work: Callable[[int], None]) -> None:
        """Run `work(port)` in a thread; then the server must be as it was before."""
        await asyncio.to_thread(work, self.api.port)
        changed = await self.api.call("POST", "/api/v1/stores/1/open", auth=token())
        assert changed[0] == 200
        async with asyncio.timeout(10):
            await self.heard.listen(self.ws, until=len(self.heard.events) + 1)
            while self.api.cron.parts.connections.open > 1 or self.api.cron.parts.hub.clients > 1:
                await asyncio.sleep(0.01)
        assert set(self.api.cron.parts.hub._topics) == {"1"}


@pytest.fixture
async def witness(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Witness]:
    async with serving() as api:
        assert (await api.call("PUT", "/api/v1/stores/1", STORE, auth=token()))[0] == 201
        async with connected(api.port, token()) as ws:
            await subscribe(ws, {"1": None})
            yield Witness(api, ws, Listener())
    said = [each for each in caplog.get_records("call") if each.levelno >= logging.WARNING]
    assert [each.getMessage() for each in said] == []


def opened(port: int, *, head: str = HEAD + BEARER) -> socket.socket:
    """A connection whose WebSocket is open."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.sendall(f"{head}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return connection


def send(connection: socket.socket, data: bytes) -> bool:
    """Whether the server took it: it may have closed the connection before."""
    try:
        connection.sendall(data)
    except ConnectionError:
        return False
    return True


def reset(connection: socket.socket) -> None:
    """Cut the connection, so that the server's writes fail."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def ended(connection: socket.socket) -> socket.socket:
    """Send nothing more; the answer can still be read."""
    with suppress(OSError):  # the server was quicker
        connection.shutdown(socket.SHUT_WR)
    return connection


def rest(connection: socket.socket) -> bytes:
    """All up to the end of the connection."""
    data = b""
    try:
        while chunk := connection.recv(65_536):
            data += chunk
    except ConnectionError:
        pass
    connection.close()
    return data


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "stores", "token", "1", "9"]), inner, max_size=4)
    ),
    max_leaves=10,
)
POSITIONS = st.none() | st.integers(0, 9)
SHAPED = st.fixed_dictionaries({
    "type": st.sampled_from(["subscribe", "unsubscribe", "authenticate", "ping", "error"]) | JSON,
    "stores": st.dictionaries(st.sampled_from(["1", "9"]), POSITIONS)
    | st.dictionaries(st.sampled_from(["\0", ".."]), JSON)
    | st.lists(st.sampled_from(["1", "9"]) | JSON, max_size=4) | JSON,
})  # fmt: skip
JSONS = (SHAPED | JSON).map(lambda value: json.dumps(value).encode())
PAYLOADS = JSONS | st.binary(max_size=200)
FRAMES = st.builds(
    frame, st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, 10, 3, 11, 15]), PAYLOADS,
    fin=st.booleans(), rsv=st.sampled_from([0, 0, 0, 1, 2, 4]),
    masked=st.sampled_from([True, True, True, False]),
    says=st.sampled_from([None, None, None, 0, 127, 65_535, MAX_FRAME + 1, 2**31, 2**64 - 1]),
)  # fmt: skip
STREAMS = st.lists(FRAMES | st.binary(max_size=40), max_size=8).map(b"".join)


async def test_bytes_that_are_no_frames_cost_only_their_sender(witness: Witness) -> None:
    @fuzz
    @given(
        stream=STREAMS,
        cut=st.integers(1, 60),
        rude=st.booleans(),
        head=st.sampled_from(["", BEARER]),
    )
    @example(frame(TEXT, b"{}") * 20, 7, False, BEARER)
    @example(frame(CLOSE, b"\x03"), 60, False, BEARER)
    @example(frame(CLOSE, b"\x03\xe8\xff"), 60, False, BEARER)
    @example(frame(PING, b"x" * 126), 60, False, BEARER)
    @example(frame(TEXT, b"\xff\xfe"), 60, False, BEARER)
    def attack(port: int, stream: bytes, cut: int, rude: bool, head: str) -> None:
        connection = opened(port, head=HEAD + head)
        if send(connection, stream[:cut]):
            send(connection, stream[cut:])
        if rude:
            reset(connection)
        else:
            rest(ended(connection))

    await witness.fuzzed(lambda port: attack(port=port))


async def test_frames_of_any_text_are_answered(witness: Witness) -> None:
    """Fewer than ten that cannot be used close nothing: a subscribe behind them is answered."""

    @fuzz
    @given(payloads=st.lists(JSONS | st.text(max_size=20).map(str.encode), max_size=8))
    def ask(port: int, payloads: list[bytes]) -> None:
        connection = opened(port)
        for payload in payloads:
            assert send(connection, frame(TEXT, payload))
        last = b'{"type": "subscribe", "stores": {"last": null}}'
        assert send(connection, frame(TEXT, last))
        answer = b""
        while b'"stores":["last"]}' not in answer:
            chunk = connection.recv(65_536)
            assert chunk, answer
            answer += chunk
        assert send(connection, frame(CLOSE, b"\x03\xe8"))
        assert rest(connection).endswith(b"\x88\x02\x03\xe8")

    await witness.fuzzed(lambda port: ask(port=port))


HEADS = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from([
            b"GET ", b"/ws ", b"HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: x", b"Upgrade: websocket",
            b"Connection: Upgrade", b"Content-Length: 5", b"Content-Length: -1",
            b"Transfer-Encoding: chunked", b"ffffffffffffffff\r\n", b"Sec-WebSocket-Key: x",
            b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: \xff", b"PRI * HTTP/2.0", b"\0",
            b"Expect: 100-continue", b"PUT /api/v1/stores/1 HTTP/1.1\r\n", b": ", b"x" * 9000,
            BEARER.encode(), b"Authorization: Bearer \xff\r\n",
        ]), max_size=10,
    ).map(b"".join),
)  # fmt: skip


async def test_bytes_that_are_no_request_cost_only_their_sender(witness: Witness) -> None:
    @fuzz
    @given(data=HEADS)
    @example(b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n")
    @example(b"GET /ws HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n")
    @example(b"GET /" + b"w" * 20_000 + b" HTTP/1.1\r\n\r\n")
    def attack(port: int, data: bytes) -> None:
        connection = socket.create_connection(("127.0.0.1", port), 10)
        send(connection, data)
        answer = rest(ended(connection))
        assert b"HTTP/1.1 5" not in answer and b"Traceback" not in answer

    await witness.fuzzed(lambda port: attack(port=port))


@pytest.mark.parametrize("kind", ["one frame", "fragments", "pings between"])
async def test_a_message_without_end_is_cut_off_at_the_limit(witness: Witness, kind: str) -> None:
    """The server takes what a message may have, and what lies in the kernel's buffers, no more."""

    def attack(port: int) -> None:
        connection = opened(port)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        piece = b"x" * 50_000
        sent, more = 0, True
        if kind == "one frame":
            more = send(connection, frame(TEXT, says=2**40))
        while more and sent < 64 * MAX_FRAME:
            if kind == "one frame":
                data = piece
            else:
                data = frame(CONTINUATION if sent else TEXT, piece, fin=False)
                data += frame(PING, b"p") if kind == "pings between" else b""
            more = send(connection, data)
            sent += len(piece)
        assert sent < 16 * MAX_FRAME
        assert b"\x03\xf1" in rest(connection)  # 1009

    await witness.fuzzed(attack)
