"""Server-Sent Events: how many there may be, and how each ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop
from test_events import opened
from test_socket import burst, handlers, nobody_left, overwhelm
from test_web import Api, put, serving, token

from servers import Commit
from solocron.clock import SystemClock
from streams import Event, StreamClient


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        await put(api, "1", "2", "3")
        yield api


# -- seats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("MAX_CONNECTIONS_PER_TOKEN", "of this token"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "of this address"),
        ("MAX_CONNECTIONS", "this server has too many"),
    ],
)
async def test_seats_are_those_of_the_websocket(
    environment: pytest.MonkeyPatch, setting: str, says: str
) -> None:
    environment.setenv(f"SOLOCRON_{setting}", "1")
    async with serving() as api:
        await put(api, "1")
        client, _ = await opened(api, "1")
        late = await StreamClient.connect(api.port, "?stores=1", auth=token())
        assert (late.status, late.headers["retry-after"]) == (429, "5")
        assert says in (await late.problem())["detail"]
        late.close()
        client.close()
        await nobody_left(api)
        client, _ = await opened(api, "1")
        client.close()
        missing = await StreamClient.connect(api.port, "?stores=9", auth=token())
        assert missing.status in (404, 429)
        missing.close()
        await nobody_left(api)


# -- the end ---------------------------------------------------------------------------------


async def test_a_token_that_ends_ends_the_stream(api: Api) -> None:
    soon = token(exp=SystemClock().now_ms() / 1000 - 4.5)  # 5 s of leeway
    client, _ = await opened(api, "1", auth=soon)
    burst(api, 1, 3, 10)
    *_, end = await client.rest()
    assert (end.event, end.id) == ("end", "") and client.is_whole
    assert end.json == {"code": 4401, "reason": "the token has expired"}
    assert client.last_id == "1:3"
    client = await StreamClient.connect(api.port, "?stores=1", auth=soon)
    assert client.status == 401
    client.close()
    await nobody_left(api)


async def test_a_drain_sends_each_away_for_another_time(api: Api) -> None:
    clients = [(await opened(api, "1"))[0] for _ in range(20)]
    await api.cron.parts.connections.drain()
    delays = []
    for client in clients:
        last = (await client.rest())[-1]
        assert client.is_whole and not last.data
        delays.append(int(last.retry))
    assert [delay * 20 // 5_000 for delay in sorted(delays)] == list(range(20))
    await nobody_left(api, 0.1)
    late = await StreamClient.connect(api.port, "?stores=1", auth=token())
    assert (late.status, late.headers["retry-after"]) == (503, "5")
    assert "going away" in (await late.problem())["detail"]
    late.close()
    api.cron.parts.connections.accept()
    client, _ = await opened(api, "1")
    client.close()


async def test_a_drain_while_a_client_is_looked_up_ends_it_too(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def unknown(store_ids: Any) -> list[str]:
        asked.set()
        await go.wait()
        return []

    monkeypatch.setattr(api.cron.parts.hub, "unknown", unknown)
    coming = asyncio.Task(StreamClient.connect(api.port, "?stores=1", auth=token()))
    await asked.wait()
    draining = asyncio.Task(api.cron.parts.connections.drain())
    await asyncio.sleep(0)
    go.set()
    client = await coming
    (only,) = await client.rest()
    assert only.retry and client.is_whole
    await draining
    api.cron.parts.connections.accept()


async def test_a_client_that_is_too_slow_is_cut_and_resumes(api: Api) -> None:
    client, _ = await opened(api, "1")
    await overwhelm(api)
    await nobody_left(api)
    seqs = [int(each.data.partition("|")[0]) for each in await client.rest() if each.data]
    assert seqs == list(range(1, len(seqs) + 1)) and not client.is_whole
    assert client.last_id == f"1:{len(seqs)}" if seqs else "1:0"


async def test_a_long_history_is_paced_to_its_client(api: Api) -> None:
    await Commit(api.cron.parts.database)("1", 5_000)
    client, _ = await opened(api, "1:0")
    for seq in range(1, 5_001):
        event = await client.event()
        assert event.id == f"1:{seq}"
    client.close()


@pytest.fixture
async def beating(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """A service with store 1 whose heart beats each half second."""
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")
    async with serving() as api:
        await put(api, "1")
        yield api


async def test_who_takes_nothing_more_is_cut_within_three_heartbeats(beating: Api) -> None:
    client, _ = await opened(beating, "1")
    burst(beating, 1, 2, 100_000)  # far from too much, but more than its kernel takes
    loop = asyncio.get_running_loop()
    began = loop.time()
    await nobody_left(beating)
    assert 0.9 < loop.time() - began < 2.5
    client.close()


async def test_a_silent_stream_has_a_comment_each_heartbeat(beating: Api) -> None:
    client, _ = await opened(beating, "1")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(1, 9):  # while there is news, none is due
        burst(beating, number, 1, 10)
        assert (await client.block()) == Event(id=f"1:{number}", data=f"{number}|{'x' * 10}")
        await asyncio.sleep(0.2)
    news = loop.time() - 0.2
    assert await client.block() == Event(comment="keep-alive")
    assert 0.4 < loop.time() - news < 0.8
    assert await client.block() == Event(comment="keep-alive")
    assert 0.9 < loop.time() - news < 1.4 and loop.time() - began > 2.4
    client.close()
    await nobody_left(beating)


@pytest.mark.parametrize("how", [StreamClient.close, StreamClient.reset, StreamClient.shut])
@pytest.mark.parametrize("pipelined", [0, 1, 60])  # at 32 the server would read no more
async def test_who_goes_is_forgotten_at_once(
    api: Api, how: Callable[[StreamClient], None], pipelined: int
) -> None:
    client, _ = await opened(api, "1", behind=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * pipelined)
    how(client)
    await nobody_left(api, 0.5)
    client.close()


async def test_who_goes_with_much_unread_is_forgotten_at_once(api: Api) -> None:
    client, _ = await opened(api, "1")
    burst(api, 1, 30, 100_000)
    await asyncio.sleep(0.05)
    client.shut()
    await nobody_left(api, 0.5)
    client.close()


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff" * 5_000, b"GET / HTTP/1.1\r\n\r\n", b"x" * 2_000_000, b"\r\n\r\n"]
)
async def test_what_a_client_sends_behind_its_request_is_dropped(api: Api, garbage: bytes) -> None:
    client, _ = await opened(api, "1")
    await client.send(garbage)
    burst(api, 1, 3, 100)
    assert [(await client.event()).id for _ in range(3)] == ["1:1", "1:2", "1:3"]
    client.close()
    await nobody_left(api, 0.5)


async def test_a_body_is_not_waited_for(api: Api) -> None:
    before = len(handlers())
    client, _ = await opened(api, "1", "Content-Length: 5000", behind=b"x" * 10)
    burst(api, 1, 1, 100)
    assert (await client.event()).id == "1:1"
    await api.cron.parts.connections.drain()
    assert (await client.rest())[-1].retry and client.is_whole
    async with asyncio.timeout(1):
        while len(handlers()) > before:
            await asyncio.sleep(0.01)
    api.cron.parts.connections.accept()


async def test_who_goes_while_looked_up_or_resumed_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(handlers())
    hub, asked = api.cron.parts.hub, asyncio.Event()
    known = hub.unknown

    async def slowly(store_ids: Any) -> list[str]:
        asked.set()
        await asyncio.sleep(0.1)
        return await known(store_ids)

    async def never(store_ids: Any) -> dict[str, int]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    request = f"GET /events?stores=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n\r\n"
    for name, slow in (("unknown", slowly), ("_outbox.heads", never)):
        asked.clear()
        with monkeypatch.context() as patch:
            if name == "unknown":
                patch.setattr(hub, name, slow)
            else:
                patch.setattr(hub, "unknown", lambda ids: asyncio.sleep(0, []))
                patch.setattr(hub._outbox, "heads", slow)
            _, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(request.encode())
            await asked.wait()
            writer.transport.abort()
            await nobody_left(api, 1)
    async with asyncio.timeout(1):
        while len(handlers()) > before:
            await asyncio.sleep(0.01)


async def test_cancellation_leaves_no_task_and_no_topic(api: Api) -> None:
    before = set(handlers())
    client, _ = await opened(api, "1,2,3")
    mine = [each for each in handlers() if each not in before]
    assert len(mine) == 2  # aiohttp's for the connection, and its for the request
    for task in mine:
        task.cancel()
    await asyncio.gather(*mine, return_exceptions=True)
    await nobody_left(api, 0.5)
    assert await client.rest() == [] and not client.is_whole


async def test_a_stop_with_streams_open_is_quick_and_leaves_nothing(
    environment: pytest.MonkeyPatch,
) -> None:
    async with serving() as api:
        await put(api, "1")
        clients = [(await opened(api, "1"))[0] for _ in range(5)]
        loop = asyncio.get_running_loop()
        began = loop.time()
    assert loop.time() - began < 2
    for client in clients:
        assert (await client.rest())[-1].retry and client.is_whole
    assert not handlers()


def test_on_uvloop_it_is_the_same(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")

    async def scenario() -> None:
        async with serving() as api:
            await put(api, "1")
            for how in (StreamClient.close, StreamClient.reset, StreamClient.shut):
                client, _ = await opened(api, "1", behind=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
                burst(api, 1, 3, 10)
                assert [(await client.event()).id for _ in range(3)] == ["1:1", "1:2", "1:3"]
                how(client)
                await nobody_left(api, 0.5)
                client.close()
            client, _ = await opened(api, "1")
            burst(api, 1, 2, 100_000)
            await nobody_left(api, 3)
            client.close()
            client, _ = await opened(api, "1")
        assert (await client.rest())[-1].retry and client.is_whole

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
