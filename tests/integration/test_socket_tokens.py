"""A token renewed over the open socket, pings, and peers that are gone without a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from test_socket import nobody_left
from test_web import Api, closed, put, serving, token

from clients import connected, subscribe
from proxy import Proxy
from raw import CLOSE, PING, PONG, TEXT, RawClient
from solocron.clock import SystemClock

LEEWAY_S = 5


@asynccontextmanager
async def with_shops() -> AsyncIterator[Api]:
    """A service with the stores 1, 2 and 3."""
    async with serving() as api:
        await put(api, "1", "2", "3")
        yield api


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with with_shops() as api:
        yield api


def of(*stores: str, **claims: Any) -> str:
    """A reader's token for these stores."""
    return token(scope="notifications:read", stores=[*stores], **claims)


def ends_in(seconds: float) -> float:
    """The `exp` of a token that the server takes for so long from now."""
    return SystemClock().now_ms() / 1000 + seconds - LEEWAY_S


async def renew(ws: aiohttp.ClientWebSocketResponse, text: str) -> Any:
    """The answer to `authenticate`."""
    await ws.send_json({"type": "authenticate", "token": text})
    return await answer(ws)


async def answer(ws: aiohttp.ClientWebSocketResponse) -> Any:
    async with asyncio.timeout(10):
        return await ws.receive_json()


async def is_there(ws: aiohttp.ClientWebSocketResponse) -> None:
    """The next frame is the answer to a ping: nothing else came before."""
    await ws.send_json({"type": "ping"})
    assert await answer(ws) == {"type": "pong"}


async def turn(api: Api, *stores: str) -> None:
    """Open these, one after the other."""
    for each in stores:
        assert (await api.call("POST", f"/api/v1/stores/{each}/open", auth=token()))[0] == 200


# -- renewal ---------------------------------------------------------------------------------


async def test_each_authenticate_is_answered_with_the_seconds_that_are_left(api: Api) -> None:
    async with connected(api.port) as ws:
        assert await renew(ws, of("1")) == {"type": "authenticated", "expires_in": 7 * 24 * 3600}
        first = await renew(ws, of("1", exp=ends_in(100.9)))
        assert first["type"] == "authenticated" and 98 <= first["expires_in"] <= 100
        await is_there(ws)
    async with connected(api.port, of("1")) as ws:  # a header is not answered
        await is_there(ws)


async def test_stores_the_new_token_is_not_for_are_heard_of_no_more(api: Api) -> None:
    async with connected(api.port, of("1", "2", "3")) as ws:
        await subscribe(ws, {"1": None, "2": None, "3": None})
        assert (await renew(ws, of("2")))["type"] == "authenticated"
        assert await answer(ws) == {"type": "unsubscribed", "stores": ["1", "3"]}
        await turn(api, "1", "3", "2")
        assert (await answer(ws))["id"] == "2:1"
        await is_there(ws)
        await ws.send_json({"type": "subscribe", "stores": {"1": 0, "2": 1}})
        assert (await answer(ws))["stores"] == {"2": {"seq": 1, "recovered": True}}
        assert (await answer(ws))["code"] == "forbidden"
    await nobody_left(api)


async def test_stores_the_new_token_is_for_can_be_subscribed_to(api: Api) -> None:
    async with connected(api.port, of("1")) as ws:
        await subscribe(ws, {"1": None})
        assert (await renew(ws, of("1", "2")))["type"] == "authenticated"
        await turn(api, "1", "2")
        assert (await answer(ws))["id"] == "1:1"  # it went on, and was not told again
        await subscribe(ws, {"2": 0})
        assert (await answer(ws))["id"] == "2:1"
        await is_there(ws)


async def test_a_renewed_token_moves_the_end(api: Api) -> None:
    async with connected(api.port, of("1", exp=ends_in(1.0))) as ws:
        await subscribe(ws, {"1": None})
        began = time.monotonic()
        assert (await renew(ws, of("1")))["type"] == "authenticated"
        await asyncio.sleep(began + 1.3 - time.monotonic())  # past the first one's end
        await is_there(ws)
        assert (await renew(ws, of("1", exp=ends_in(0.5))))["expires_in"] == 0  # and back
        assert await closed(ws) == (4401, "the token has expired")
    await nobody_left(api)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("nonsense", 4401),
        ("", 4401),
        (token(exp=1), 4401),
        (token(key="f" * 64), 4401),
        (token(scope="stores:write"), 4403),
    ],
)
async def test_a_token_that_is_refused_ends_the_connection(api: Api, bad: str, code: int) -> None:
    async with connected(api.port, of("1")) as ws:
        await subscribe(ws, {"1": None})
        await ws.send_json({"type": "authenticate", "token": bad})
        await ws.send_json({"type": "ping"})
        async with asyncio.timeout(10):
            message = await ws.receive()
        assert message.type is WSMsgType.CLOSE and ws.close_code == code
        assert not bad or bad not in message.extra
        assert "token" in message.extra and "Signature" not in message.extra
    await nobody_left(api)
    assert not api.cron.parts.connections.of_token._taken


async def test_a_token_that_is_no_text_is_invalid_and_changes_nothing(api: Api) -> None:
    async with connected(api.port, of("1", exp=ends_in(3))) as ws:
        await subscribe(ws, {"1": None})
        wrong: list[Any] = [None, 1, ["x"], {}, True]
        for bad in wrong:
            await ws.send_json({"type": "authenticate", "token": bad})
            refused = await answer(ws)
            assert refused["code"] == "invalid"
            assert refused["message"] == "authenticate: token must be a string"
        await turn(api, "1")
        assert (await answer(ws))["id"] == "1:1"
        assert await closed(ws) == (4401, "the token has expired")  # as before


async def test_seats_are_those_of_the_token_in_use(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_MAX_CONNECTIONS_PER_TOKEN", "1")
    mine, other = of("1", sub="mine"), of("1", sub="other")
    async with with_shops() as api, connected(api.port, mine) as ws:
        assert (await renew(ws, mine))["type"] == "authenticated"  # it has the seat already
        async with connected(api.port, mine) as second:
            assert (await closed(second))[0] == 4429
        assert (await renew(ws, other))["type"] == "authenticated"
        async with connected(api.port, mine) as second:  # its seat was left
            await is_there(second)
            async with connected(api.port, other) as third:  # and that one's was taken
                assert (await closed(third))[0] == 4429
            await second.send_json({"type": "authenticate", "token": other})
            assert await closed(second) == (4429, "too many connections of this token")
        async with asyncio.timeout(5):
            while api.cron.parts.connections.open > 1:
                await asyncio.sleep(0.005)
        async with connected(api.port, mine) as second:
            await is_there(second)
        await is_there(ws)
        await ws.close()
        await nobody_left(api)
        assert not api.cron.parts.connections.of_token._taken


async def test_a_renewal_during_a_long_subscribe_is_in_force_after_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, go_on = api.cron.parts.hub._outbox, asyncio.Event()
    heads = outbox.heads

    async def slow(store_ids: Any) -> dict[str, int]:
        await go_on.wait()
        return await heads(store_ids)

    async with connected(api.port, of("1", "2")) as ws:
        await subscribe(ws, {"2": None})
        monkeypatch.setattr(outbox, "heads", slow)
        await ws.send_json({"type": "subscribe", "stores": {"1": 0}})
        await ws.send_json({"type": "authenticate", "token": of("2")})
        await turn(api, "2")
        assert (await answer(ws))["id"] == "2:1"  # what is watched goes on
        go_on.set()
        assert (await answer(ws))["stores"] == {"1": {"seq": 0, "recovered": True}}
        assert (await answer(ws))["type"] == "authenticated"
        assert await answer(ws) == {"type": "unsubscribed", "stores": ["1"]}
        await turn(api, "1")
        await is_there(ws)


# -- ping and unsubscribe --------------------------------------------------------------------


async def test_a_ping_is_answered_after_what_came_before_it(api: Api) -> None:
    async with connected(api.port, of("1")) as ws:
        await subscribe(ws, {"1": None})
        await turn(api, "1")
        for _ in range(20):
            await ws.send_json({"type": "ping", "more": "is ignored"})
        assert (await answer(ws))["id"] == "1:1"
        assert [await answer(ws) for _ in range(20)] == [{"type": "pong"}] * 20


async def test_a_ping_before_the_token_is_no_token(api: Api) -> None:
    async with connected(api.port) as ws:
        await ws.send_json({"type": "ping"})
        assert (await closed(ws))[0] == 4401


@pytest.mark.parametrize("stores", [[], ["1"], ["1", "1", "nowhere"], ["*"]])
async def test_an_unsubscribe_is_answered_with_what_it_named(api: Api, stores: list[str]) -> None:
    async with connected(api.port, of("1")) as ws:
        await subscribe(ws, {"1": None})
        await ws.send_json({"type": "unsubscribe", "stores": stores})
        assert await answer(ws) == {"type": "unsubscribed", "stores": stores}
        await turn(api, "1")
        if "1" not in stores:
            assert (await answer(ws))["id"] == "1:1"
        await is_there(ws)


# -- heartbeat -------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [("requests",), ("replies",), ("requests", "replies")])
async def test_a_half_open_peer_is_found_within_two_heartbeats(
    environment: pytest.MonkeyPatch, lost: tuple[str, ...]
) -> None:
    environment.setenv("SOLOCRON_HEARTBEAT", "1")
    async with (
        with_shops() as api,
        Proxy(api.port) as proxy,
        connected(proxy.port, of("1"), autoclose=False) as ws,
    ):
        await subscribe(ws, {"1": None})
        taking = asyncio.create_task(ws.receive())
        proxy.swallow(*lost)
        began = time.monotonic()
        while api.cron.parts.connections.open or api.cron.parts.hub.clients:
            assert time.monotonic() - began < 2
            await asyncio.sleep(0.005)
        assert time.monotonic() - began > 0.5
        await proxy.mend()
        async with asyncio.timeout(5):
            assert (await taking).type in (WSMsgType.CLOSED, WSMsgType.ERROR)


async def test_a_silent_peer_to_whom_much_is_on_the_way_is_dropped_as_soon(
    environment: pytest.MonkeyPatch,
) -> None:
    """What it did not take holds nothing up."""
    environment.setenv("SOLOCRON_HEARTBEAT", "1")
    async with with_shops() as api:
        client = await RawClient.connect(api.port, f"Authorization: Bearer {of('1')}")
        await client.send(TEXT, b'{"type": "subscribe", "stores": {"1": 0}}')
        assert await client.frame() is not None
        began = time.monotonic()
        for seq in range(1, 4):
            api.cron.parts.hub.deliver("1", seq, b"x" * 1_200_000)
        await nobody_left(api, 2)
        assert time.monotonic() - began > 0.5
        client.close()


async def test_a_peer_that_only_listens_is_kept(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")
    async with with_shops() as api:
        client = await RawClient.connect(api.port, f"Authorization: Bearer {of('1')}")
        await client.send(TEXT, b'{"type": "subscribe", "stores": {"1": 0}}')
        pings, began = 0, time.monotonic()
        while pings < 5:
            frame = await client.frame()
            assert frame is not None and frame.opcode in (PING, TEXT)
            if frame.opcode == PING:
                pings += 1
                await client.send(PONG, frame.payload)
        assert time.monotonic() - began > 5 * 0.4
        await turn(api, "1")
        frame = await client.frame()
        assert frame is not None and b'"1:1"' in frame.payload
        await client.send(CLOSE, b"\x03\xe8")
        await nobody_left(api)
        client.close()


async def test_a_peer_is_kept_while_its_subscribe_takes_long(
    environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pongs are heard although no frame of it is read."""
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")
    async with with_shops() as api, connected(api.port, of("1")) as ws:
        outbox, go_on = api.cron.parts.hub._outbox, asyncio.Event()
        heads = outbox.heads

        async def slow(store_ids: Any) -> dict[str, int]:
            await go_on.wait()
            return await heads(store_ids)

        monkeypatch.setattr(outbox, "heads", slow)
        await ws.send_json({"type": "subscribe", "stores": {"1": 0}})
        subscribing = asyncio.create_task(answer(ws))
        await asyncio.sleep(2)  # four heartbeats
        go_on.set()
        assert (await subscribing)["type"] == "subscribed"
        await is_there(ws)
