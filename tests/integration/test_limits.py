"""What one client may take, and for how long: each limit, on real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from unittest.mock import Mock

import aiohttp
import jwt
import pytest
from aiohttp.test_utils import make_mocked_request
from test_web import STORE, Api, closed, serving, token

from clients import connected, subscribe
from conftest import SECRET
from solocron.web import api as api_module
from solocron.web import server as server_module
from solocron.web import session as session_module
from solocron.web.guard import address


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        assert (await api.call("PUT", "/api/v1/stores/1", STORE, auth=token()))[0] == 201
        yield api


async def is_served(ws: aiohttp.ClientWebSocketResponse) -> None:
    await ws.send_str("x")
    assert (await ws.receive_json())["code"] == "invalid"


# -- connections -----------------------------------------------------------------------------


def same_token(text: str) -> str:
    """The same token in other letters: the last one of a signature has bits of no meaning."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


async def test_a_token_has_so_many_connections(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("SOLOCRON_MAX_CONNECTIONS_PER_TOKEN", "2")
    mine, other = token(sub="a"), token(sub="b")
    async with serving() as api, AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(connected(api.port, mine)) for _ in "12"]
        await is_served(first)
        await is_served(second)
        async with connected(api.port, mine) as third:
            assert await closed(third) == (4429, "too many connections of this token")
        async with connected(api.port, same_token(mine)) as third:
            assert (await closed(third))[0] in (4401, 4429)
        async with connected(api.port) as third:  # nor by the first frame
            await third.send_json({"type": "authenticate", "token": mine})
            assert (await closed(third))[0] == 4429
        async with connected(api.port, other) as ws:
            await is_served(ws)
        await first.close()
        async with asyncio.timeout(5):
            while api.cron.parts.connections.open > 1:
                await asyncio.sleep(0.01)
        async with connected(api.port, mine) as ws:
            await is_served(ws)
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(told) == 1 and "SOLOCRON_MAX_CONNECTIONS_PER_TOKEN" in told[0]
    assert mine not in told[0]


async def test_an_address_has_so_many_connections_with_whatever_tokens(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("SOLOCRON_MAX_CONNECTIONS_PER_ADDRESS", "2")
    async with serving() as api, connected(api.port, token(sub="a")) as first:
        await is_served(first)
        async with connected(api.port) as silent:  # one that has not said who it is counts, too
            async with asyncio.timeout(5):
                while api.cron.parts.connections.open < 2:
                    await asyncio.sleep(0.01)
            async with connected(api.port, token(sub="b")) as third:
                assert await closed(third) == (4429, "too many connections of this address")
            assert not silent.closed
        async with asyncio.timeout(5):
            while api.cron.parts.connections.open > 1:
                await asyncio.sleep(0.01)
        async with connected(api.port, token(sub="b")) as ws:
            await is_served(ws)
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(told) == 1 and "SOLOCRON_MAX_CONNECTIONS_PER_ADDRESS" in told[0]


async def test_without_these_limits_all_are_served(environment: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "ADDRESS"):
        environment.setenv(f"SOLOCRON_MAX_CONNECTIONS_PER_{name}", "0")
    async with serving() as api, AsyncExitStack() as stack:
        for _ in range(5):
            await is_served(await stack.enter_async_context(connected(api.port, token())))


@pytest.mark.parametrize(
    ("peer", "counted_for"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", ""),
    ],
)
def test_whom_a_connection_is_counted_for(peer: object, counted_for: str) -> None:
    transport = Mock(get_extra_info=lambda name, default=None: peer)
    headers = {"X-Forwarded-For": "198.51.100.9", "Forwarded": "for=198.51.100.9"}
    assert address(make_mocked_request("GET", "/", headers, transport=transport)) == counted_for


# -- time ------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(api: Api) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the server, cut at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ended(reader: asyncio.StreamReader, within_s: float) -> bytes:
    async with asyncio.timeout(within_s):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def drip(writer: asyncio.StreamWriter, data: bytes, pause_s: float) -> None:
    """Send byte by byte until the server has closed."""
    try:
        for byte in data:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(pause_s)
    except ConnectionError:
        pass


@pytest.mark.parametrize("start", [b"GET /", b"GET /ws HTTP/1.1\r\nHost: x\r\nX: "])
async def test_a_request_without_end_is_cut_off(
    api: Api, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(server_module, "_REQUEST_WITHIN_S", 0.3)
    async with opened(api) as (reader, writer):
        dripping = asyncio.create_task(drip(writer, start + b"z" * 5000, 0.02))
        assert await ended(reader, 3) == b""
        await dripping


async def test_a_slow_request_in_time_is_served_and_its_connection_stays(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_REQUEST_WITHIN_S", 0.5)
    async with opened(api) as (reader, writer):
        for pause_s in (0.002, 0.01):  # the second one takes longer than the first may
            await drip(
                writer, b"GET /healthz HTTP/1.1\r\nHost: localhost:1234567890\r\n\r\n", pause_s
            )
            async with asyncio.timeout(5):
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b"}")
        async with connected(api.port, token()) as ws:
            await subscribe(ws, {"1": None})
            await asyncio.sleep(0.6)  # a WebSocket that is open has asked
            await is_served(ws)


async def test_an_idle_connection_is_closed(
    environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_IDLE_S", 0.3)
    async with serving() as api, opened(api) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        dripping = asyncio.create_task(drip(writer, b"GET /" + b"z" * 5000, 0.02))
        assert (await ended(reader, 5)).startswith(b"HTTP/1.1 200 ")
        await dripping


async def test_silent_connections_keep_nobody_out_and_go(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_REQUEST_WITHIN_S", 1.5)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(opened(api)) for _ in range(400)]
        async with asyncio.timeout(1.4):
            assert (await api.call("GET", "/api/v1/stores", auth=token()))[0] == 200
            async with connected(api.port, token()) as ws:
                await subscribe(ws, {"1": None})
        assert await asyncio.gather(*(ended(reader, 5) for reader, _ in silent)) == [b""] * 400


async def test_a_body_without_end_is_answered_in_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_BODY_WITHIN_S", 0.3)
    async with opened(api) as (reader, writer):
        head = (
            "PUT /api/v1/stores/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
            f"Authorization: Bearer {token()}\r\n\r\n"
        )
        writer.write(head.encode())
        dripping = asyncio.create_task(drip(writer, b"{" * 40, 0.02))
        async with asyncio.timeout(5):
            assert b" 408 " in await reader.readline()
        await dripping


# -- sizes -----------------------------------------------------------------------------------


async def test_a_client_has_so_many_subscriptions(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_MAX_SUBSCRIPTIONS", 3)
    for store_id in ("2", "3", "4"):
        assert (await api.call("PUT", f"/api/v1/stores/{store_id}", STORE, auth=token()))[0] == 201
    async with connected(api.port, token()) as ws:
        await subscribe(ws, {"1": None, "2": None})
        await subscribe(ws, {"2": None, "3": None})
        await ws.send_json({"type": "subscribe", "stores": {"4": None}})
        assert "at most 3 subscriptions" in (await ws.receive_json())["message"]
        await ws.send_json({"type": "unsubscribe", "stores": ["1"]})
        await subscribe(ws, {"4": None})


@pytest.mark.parametrize(
    "head",
    ["/?" + "x" * 9_000, "/ HTTP/1.1\r\nX: " + "y" * 9_000, "/ HTTP/1.1" + "\r\nX: y" * 200],
)
async def test_a_head_over_the_limit_is_refused(api: Api, head: str) -> None:
    async with opened(api) as (reader, writer):
        writer.write(f"GET {head}{'' if ' ' in head else ' HTTP/1.1'}\r\nHost: x\r\n\r\n".encode())
        assert (await ended(reader, 5)).startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))


# -- audience --------------------------------------------------------------------------------


async def test_the_audience_can_be_the_issuers(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_AUTH_AUDIENCE", "https://api.shop.example")
    claims = {"exp": 4_000_000_000, "stores": "*", "scope": "admin"}
    several = ["other", "https://api.shop.example"]
    async with serving() as api:
        own = api.cron.parts.authenticator.issue(
            subject="me", stores=None, scopes=["admin"], lifetime_s=60
        )
        asked = [
            (await api.call("GET", "/api/v1/stores", auth=each))[0]
            for each in (
                own,
                token(aud=several),
                token(),
                token(aud=[]),
                jwt.encode(claims, SECRET),
            )
        ]
    assert asked == [200, 200, 401, 401, 401]
