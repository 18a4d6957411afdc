"""The WebSocket on real sockets: the slow, the silent, the late and the rude, and their cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from test_web import Api, closed, serving, token

from clients import connected, subscribe
from raw import CLOSE, PING, PONG, TEXT, RawClient
from solocron.clock import SystemClock
from solocron.web import connections as connections_module
from solocron.web import session as session_module
from solocron.web import socket as ws_module

BEARER = f"Authorization: Bearer {token()}"


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        store = {"name": "Mitte", "timezone": "Europe/Berlin", "hours": "24/7"}
        assert (await api.call("PUT", "/api/v1/stores/1", store, auth=token()))[0] == 201
        yield api


async def subscribed(api: Api, *headers: str) -> RawClient:
    client = await RawClient.connect(api.port, BEARER, *headers)
    await client.send(TEXT, b'{"type": "subscribe", "stores": {"1": 0}}')
    frame = await client.frame()
    assert frame is not None and json.loads(frame.payload)["type"] == "subscribed"
    return client


def burst(api: Api, first: int, count: int, size: int) -> None:
    for seq in range(first, first + count):
        api.cron.parts.hub.deliver("1", seq, b"%d|" % seq + b"x" * size)


async def nobody_left(api: Api, within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while api.cron.parts.connections.open or api.cron.parts.hub.clients:
            await asyncio.sleep(0.01)
    assert not api.cron.parts.hub._topics


def handlers() -> list[asyncio.Task[Any]]:
    return [each for each in asyncio.all_tasks() if "RequestHandler" in str(each.get_coro())]


async def overwhelm(api: Api) -> None:
    """Send store 1's watchers more than they take, until the server gives them up."""
    seq = 1
    async with asyncio.timeout(10):
        while api.cron.parts.hub.clients:
            burst(api, seq, 10, 100_000)
            seq += 10
            await asyncio.sleep(0.001)


async def overwhelmed(api: Api) -> RawClient:
    """A subscriber that took nothing until the server gave it up."""
    client = await subscribed(api)
    await overwhelm(api)
    return client


async def test_a_client_that_reads_slowly_gets_whole_frames_then_4408(api: Api) -> None:
    client = await overwhelmed(api)
    frames = await client.until_close(pause_s=0.001)
    assert (frames[-1].opcode, frames[-1].code) == (CLOSE, 4408)
    seqs = [int(each.payload.partition(b"|")[0]) for each in frames[:-1]]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 40
    assert {each.first for each in frames[:-1]} == {0x81}
    await nobody_left(api)
    client.close()


async def test_a_client_that_never_reads_is_dropped(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CLOSE_WITHIN_S", 0.3)
    client = await overwhelmed(api)
    await nobody_left(api)
    assert CLOSE not in [each.opcode for each in await client.rest()]
    client.close()


async def test_a_client_that_closes_and_never_reads_is_dropped(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CLOSE_WITHIN_S", 0.3)
    client = await subscribed(api)
    burst(api, 1, 35, 100_000)
    await asyncio.sleep(0)
    await client.send(CLOSE, b"\x03\xe8")
    await nobody_left(api)
    assert CLOSE not in [each.opcode for each in await client.rest()]
    client.close()


async def test_control_frames_come_between_whole_notifications(api: Api) -> None:
    client = await subscribed(api)
    for number in range(20):
        burst(api, number * 5 + 1, 5, 30_000)
        await client.send(PING, b"%d" % number)
        await asyncio.sleep(0)
    pongs, seqs = [], []
    while len(pongs) < 20 or len(seqs) < 100:
        frame = await client.frame()
        assert frame is not None
        if frame.opcode == PONG:
            pongs.append(int(frame.payload))
        else:
            seqs.append(int(frame.payload.partition(b"|")[0]))
    assert pongs == list(range(20)) and seqs == list(range(1, 101))
    client.close()


async def test_nothing_follows_the_close_frame(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server refuses a frame with 1009 and waits for the answer, while news comes in."""
    monkeypatch.setattr(ws_module, "MAX_FRAME", 1000)
    client = await subscribed(api)
    await client.send(TEXT, b"x" * 1001)
    frame = await client.frame()
    assert frame is not None and (frame.opcode, frame.code) == (CLOSE, 1009)
    burst(api, 1, 3, 100)
    await asyncio.sleep(0.05)
    await client.send(CLOSE, b"\x03\xf1")
    assert await client.frame() is None
    await nobody_left(api)
    client.close()


@pytest.mark.parametrize("is_told", [False, True], ids=["at once", "told of it"])
async def test_a_client_that_goes_before_it_is_answered_is_no_error(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_told: bool
) -> None:
    serving: list[asyncio.Task[Any] | None] = []

    def go(request: web.Request, allowed: object) -> None:
        assert request.transport is not None
        request.transport.abort()
        if is_told:
            request.protocol.connection_lost(None)
        serving.append(asyncio.current_task())

    monkeypatch.setattr(ws_module, "check_origin", go)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\n{BEARER}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    (task,) = serving
    assert task is not None
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    assert caplog.messages == []


async def test_compression_is_not_agreed_to(api: Api) -> None:
    client = await subscribed(api, "Sec-WebSocket-Extensions: permessage-deflate")
    assert "permessage-deflate" not in client.head
    burst(api, 1, 1, 5_000)
    frame = await client.frame()
    assert frame is not None and frame.first == 0x81 and frame.payload == b"1|" + b"x" * 5_000
    client.close()


async def test_another_subprotocol_is_not_agreed_to(api: Api) -> None:
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{api.port}/ws"
        headers = {"Authorization": f"Bearer {token()}"}
        async with http.ws_connect(url, protocols=("other",), headers=headers) as ws:
            assert ws.protocol is None
        async with http.ws_connect(url, protocols=("other", "solocron.v1"), headers=headers) as ws:
            assert ws.protocol == "solocron.v1"


@pytest.mark.parametrize(
    "missing", ["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]
)
async def test_a_request_that_is_no_handshake_is_a_bad_request(api: Api, missing: str) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    del headers[missing]
    status, answer = await api.call("GET", "/ws", auth=token(), **headers)
    assert (status, answer["status"]) == (400, 400)


# -- authentication --------------------------------------------------------------------------


async def test_who_says_nothing_is_closed_in_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_AUTHENTICATE_WITHIN_S", 0.1)
    async with connected(api.port) as ws:
        assert await closed(ws) == (4401, "no token within 0.1 s")
    await nobody_left(api)


@pytest.mark.parametrize("first", [b"\x00" * 5, token(), '{"type": "authenticate", "token": 1}',
                                   '{"type": "authenticate", "token": "\\ud800"}',
                                   json.dumps({"token": token()})])  # fmt: skip
async def test_a_first_frame_that_is_no_token_is_refused_and_not_quoted(
    api: Api, first: bytes | str
) -> None:
    async with connected(api.port) as ws:
        await (ws.send_bytes(first) if isinstance(first, bytes) else ws.send_str(first))
        code, reason = await closed(ws)
        assert code == 4401 and "eyJ" not in reason


async def test_a_close_as_first_frame_ends_it(api: Api) -> None:
    client = await RawClient.connect(api.port)
    await client.send(CLOSE, b"\x03\xe8")
    frame = await client.frame()
    assert frame is not None and frame.opcode == CLOSE
    assert await client.frame() is None
    await nobody_left(api)
    client.close()


async def test_the_token_of_the_first_frame_and_of_the_header_are_one(api: Api) -> None:
    async with connected(api.port) as ws:
        await ws.send_json({"type": "authenticate", "token": token()})
        await subscribe(ws, {"1": None})
    async with connected(api.port, "nonsense") as ws:  # a bad header is not made good by a frame
        with suppress(ConnectionError):
            await ws.send_json({"type": "authenticate", "token": token()})
        assert (await closed(ws))[0] == 4401


async def test_a_token_that_expires_while_its_client_subscribes_ends_that(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = asyncio.Event()

    async def heads(store_ids: Any) -> dict[str, int]:
        await forever.wait()
        return {}

    monkeypatch.setattr(api.cron.parts.hub._outbox, "heads", heads)
    soon = SystemClock().now_ms() / 1000 - 4.5  # 5 s of leeway
    async with connected(api.port, token(exp=soon)) as ws:
        await ws.send_json({"type": "subscribe", "stores": {"1": 0}})
        assert await closed(ws) == (4401, "the token has expired")
    await nobody_left(api)


async def test_a_reason_is_whole_utf_8(api: Api) -> None:
    """A close frame's reason is cut to fit, but not within a character."""

    class Ws:
        async def close(self, *, code: int, message: bytes, drain: bool) -> None:
            self.message = message

    class Transport:
        def get_write_buffer_size(self) -> int:
            return 0

    ws: Any = Ws()
    transport: Any = Transport()
    await ws_module.part(ws, transport, 1008, "x" + "é" * 200, 1.0)
    assert len(ws.message) <= 123 and ws.message.decode().endswith("é")


# -- draining --------------------------------------------------------------------------------


async def test_a_drain_is_parallel_and_bounded_however_rude_the_clients(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "_DRAIN_WITHIN_S", 0.5)
    before = len(handlers())
    silent = [await RawClient.connect(api.port, BEARER) for _ in range(300)]
    async with asyncio.timeout(10):
        while api.cron.parts.connections.open < 300:
            await asyncio.sleep(0.01)
    began = time.monotonic()
    await api.cron.parts.connections.drain()
    assert 0.5 <= time.monotonic() - began < 2.5
    await nobody_left(api, 0.1)
    frame = await silent[0].frame()
    assert frame is not None and frame.code == 1001
    for client in silent:
        client.close()
    async with asyncio.timeout(5):
        while len(handlers()) > before:
            await asyncio.sleep(0.01)
    async with connected(api.port, token()) as late:
        assert (await closed(late))[0] == 1001
    api.cron.parts.connections.accept()
    async with connected(api.port, token()) as again:
        await subscribe(again, {"1": None})
