"""A client's writes: whole frames, one write a turn, within bounds, and none after the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from hypothesis import given, settings
from hypothesis import strategies as st

from peers import Peer, Wire
from solocron.notifications.client import Client, Turn, text_frame


async def parsed(payloads: Sequence[str]) -> list[str]:
    """What aiohttp's client reads of frames that are written to its socket."""

    async def write(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        assert request.transport is not None
        request.transport.write(b"".join(text_frame(each.encode()) for each in payloads))
        await ws.close()
        return ws

    app = web.Application()
    app.router.add_get("/", write)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as ws:
        messages = [message async for message in ws]
    await runner.cleanup()
    assert all(each.type is WSMsgType.TEXT for each in messages)
    return [each.data for each in messages]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 300_000])
async def test_a_frame_of_any_size_is_what_the_parser_reads(size: int) -> None:
    assert await parsed(["x" * size, "y" * size]) == ["x" * size, "y" * size]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=300), max_size=5))
def test_any_text_comes_out_as_it_went_in(texts: list[str]) -> None:
    assert asyncio.run(parsed(texts)) == texts


async def test_frames_of_a_turn_are_one_write() -> None:
    peer = Peer()
    for turn in range(3):
        for _ in range(100):
            peer.client.send(b"x")
        assert len(peer.wire.writes) == turn
        await asyncio.sleep(0)
    assert peer.wire.writes == [b"x" * 100] * 3


async def test_what_waits_for_a_stalled_peer_is_bounded() -> None:
    peer = Peer(max_pending=1_000)
    peer.wire.stalled = True
    for _ in range(50):
        peer.client.send(b"x" * 90)
        assert peer.client.pending <= 1_090
        await asyncio.sleep(0)
    assert peer.wire.get_write_buffer_size() == 990
    assert peer.client.is_closed and peer.slow.is_set()


async def test_a_turn_of_more_than_the_bound_is_not_written_at_all() -> None:
    calls: list[int] = []
    wire, turn = Wire(), Turn()
    client = Client(wire, turn, on_slow=lambda: calls.append(1), max_pending=1_000)
    for _ in range(50):
        client.send(b"x" * 90)
        assert client.pending <= 1_090
    for _ in range(3):
        await asyncio.sleep(0)
    assert (wire.writes, calls, client.pending) == ([], [1], 0)
    assert turn.slow == 1


async def test_nothing_is_written_after_the_end() -> None:
    peer = Peer()
    peer.client.send(b"queued")
    peer.client.close()
    peer.client.send(b"later")
    await asyncio.sleep(0)
    assert peer.wire.writes == [] and not peer.slow.is_set()
    peer = Peer()
    peer.client.send(b"queued")
    peer.wire.closing = True
    await asyncio.sleep(0)
    assert (peer.wire.writes, peer.client.pending) == ([], 0)


async def test_a_client_that_cannot_be_written_to_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turn = Turn()
    broken, peer = Peer(turn=turn), Peer(turn=turn)
    broken.wire.write = None  # type: ignore[method-assign] # a fault of the transport
    for each in (broken, peer):
        each.client.send(b"x")
    await asyncio.sleep(0)
    assert peer.wire.writes == [b"x"] and broken.client.is_closed
    assert "could not be written to" in caplog.text
    await asyncio.sleep(0)
    assert broken.slow.is_set()  # so that it ends, and its client comes back
