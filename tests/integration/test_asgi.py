"""The WebSocket of an ASGI server beside the aiohttp port's: one protocol, one hub, one set of
limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from test_socket import nobody_left, overwhelm
from test_web import STORE, Api, closed, serving, token

from asgi_servers import Server, on_hypercorn, on_uvicorn
from clients import Listener, connected, subscribe
from raw import CLOSE, TEXT, RawClient
from servers import Commit
from solocron.client import Client, Refused
from solocron.errors import ConfigError
from solocron.service import Solocron
from solocron.settings import load
from solocron.web import asgi as asgi_module
from solocron.web import session as session_module
from solocron.web.auth import Forbidden

BEARER = f"Authorization: Bearer {token()}"


class Both(Api):
    """A service on its aiohttp port, and on an ASGI server's port `asgi`."""

    asgi: int


@asynccontextmanager
async def both(server: Server) -> AsyncIterator[Both]:
    async with serving() as api, server(api.cron.websocket) as port:
        for each in ("1", "2"):
            assert (await api.call("PUT", f"/api/v1/stores/{each}", STORE, auth=token()))[0] == 201
        api.__class__ = Both
        assert isinstance(api, Both)
        api.asgi = port
        yield api


@pytest.fixture(params=[on_uvicorn, on_hypercorn], ids=["uvicorn", "hypercorn"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each test runs on both ASGI servers."""
    found: Server = request.param
    return found


@pytest.fixture
async def api(environment: pytest.MonkeyPatch, server: Server) -> AsyncIterator[Both]:
    async with both(server) as api:
        yield api


async def watcher(api: Both) -> RawClient:
    client = await RawClient.connect(api.asgi, BEARER, "Sec-WebSocket-Protocol: solocron.v1")
    assert "solocron.v1" in client.head
    await client.send(TEXT, b'{"type": "subscribe", "stores": {"1": 0}}')
    frame = await client.frame()
    assert frame is not None and json.loads(frame.payload)["type"] == "subscribed"
    return client


# -- one protocol and one hub --------------------------------------------------------------------


async def test_clients_of_both_ports_hear_the_same_at_once(api: Both) -> None:
    listeners = Listener(), Listener()
    async with connected(api.port, token()) as ours, connected(api.asgi, token()) as theirs:
        for ws in (ours, theirs):
            assert ws.protocol == "solocron.v1"
            await subscribe(ws, {"1": 0, "2": None})
        for action in ("open", "close", "open"):
            await api.call("POST", f"/api/v1/stores/1/{action}", auth=token())
        await asyncio.gather(listeners[0].listen(ours, 3), listeners[1].listen(theirs, 3))
        assert api.cron.parts.connections.kinds()["websocket"] == 2
    assert listeners[0].events == listeners[1].events
    listeners[1].assert_each_once(["1"], 3)
    async with connected(api.asgi, token()) as late:
        assert (await subscribe(late, {"1": 1}))["1"] == {"seq": 3, "recovered": True}
        listener = Listener()
        await listener.listen(late, 2)
    assert listener.seqs == {"1": [2, 3]}
    await nobody_left(api)


async def test_a_client_authenticates_by_a_frame_renews_and_is_answered(api: Both) -> None:
    async with connected(api.asgi) as ws:
        await ws.send_json({"type": "authenticate", "token": token(stores=["1"])})
        assert (await ws.receive_json())["type"] == "authenticated"
        await ws.send_json({"type": "subscribe", "stores": {"1": 0, "2": 0, "9": 0}})
        assert list((await ws.receive_json())["stores"]) == ["1"]
        assert (await ws.receive_json())["stores"] == ["2", "9"]
        await ws.send_json({"type": "authenticate", "token": token(stores=["2"])})
        assert (await ws.receive_json())["type"] == "authenticated"
        assert (await ws.receive_json()) == {"type": "unsubscribed", "stores": ["1"]}
        await ws.send_json({"type": "ping"})
        assert (await ws.receive_json()) == {"type": "pong"}
    await nobody_left(api)


@pytest.mark.parametrize(
    ("auth", "code"), [("nonsense", 4401), (token(scope="stores:write"), 4403)]
)
async def test_a_token_that_does_not_do_is_refused(api: Both, auth: str, code: int) -> None:
    async with connected(api.asgi, auth) as ws:
        assert (await closed(ws))[0] == code
    await nobody_left(api)


async def test_who_says_nothing_is_closed_in_time(
    api: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_AUTHENTICATE_WITHIN_S", 0.1)
    async with connected(api.asgi) as ws:
        assert await closed(ws) == (4401, "no token within 0.1 s")


async def test_frames_that_cannot_be_used_end_a_connection(api: Both) -> None:
    async with connected(api.asgi, token()) as ws:
        for _ in range(10):
            await ws.send_bytes(b"x")
        assert (await closed(ws))[0] == 1008
    async with connected(api.asgi, token()) as ws:  # in bytes, not characters
        await ws.send_str("é" * (session_module.MAX_FRAME // 2 + 1))
        assert (await closed(ws))[0] == 1009
    await nobody_left(api)


async def test_only_pages_of_allowed_origins_are_let_in(
    environment: pytest.MonkeyPatch, server: Server
) -> None:
    environment.setenv("SOLOCRON_ORIGINS", "https://shop.example")
    async with both(server) as api:
        own = f"http://127.0.0.1:{api.asgi}"
        for origin in ("https://shop.example", own):
            async with connected(api.asgi, token(), origin=origin) as ws:
                await subscribe(ws, {"1": None})
        async with connected(api.asgi, token(), origin="https://evil.example") as ws:
            code, reason = await closed(ws)
        assert code == 4403 and "add it to SOLOCRON_ORIGINS" in reason


def refuse(request: object) -> None:
    raise Forbidden("without SOLOCRON_AUTH_SECRET only this machine is served")


async def test_without_a_secret_only_this_machine_and_its_name_are_served(
    environment: pytest.MonkeyPatch, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    environment.delenv("SOLOCRON_AUTH_SECRET")
    async with both(server) as api, aiohttp.ClientSession() as http:
        async with connected(api.asgi) as ws:
            await subscribe(ws, {"1": None})
        for _ in range(2):
            url = f"http://127.0.0.1:{api.asgi}/ws"
            async with http.ws_connect(url, headers={"Host": "rebound.example"}) as ws:
                code, reason = await closed(ws)
            assert code == 4403 and "without SOLOCRON_AUTH_SECRET only localhost" in reason
        client = Client(f"http://127.0.0.1:{api.asgi}/ws", {"1": 0})
        environment.setattr(asgi_module, "check_host", refuse)
        with pytest.raises(Refused, match="only this machine"):
            async with client as events:
                await anext(aiter(events))
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len([each for each in said if each.startswith("WebSockets of 127.0.0.1 are ref")]) == 1
    assert "handshake" not in caplog.text


async def test_a_client_elsewhere_is_told_that_it_needs_a_token(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.delenv("SOLOCRON_AUTH_SECRET")
    cron = Solocron(load())
    for number in range(1100):
        wire = Wire(client=(f"192.0.{number // 200}.{number % 200}", 1234))
        await wire.run(cron, "websocket.connect")
        assert wire.sent[-1]["code"] == 4403
        assert "SOLOCRON_AUTH_SECRET only this machine" in wire.sent[-1]["reason"]
    assert caplog.text.count("are refused: without SOLOCRON_AUTH_SECRET") == 1000


async def test_plain_http_is_told_to_upgrade(api: Both) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{api.asgi}/ws") as answer,
    ):
        assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
        assert answer.content_type == "application/problem+json"
        assert "solocron.v1" in (await answer.json(content_type=None))["detail"]


# -- one set of limits ---------------------------------------------------------------------------


async def test_the_connections_of_both_ports_are_counted_together(
    environment: pytest.MonkeyPatch, server: Server
) -> None:
    environment.setenv("SOLOCRON_MAX_CONNECTIONS_PER_ADDRESS", "2")
    environment.setenv("SOLOCRON_MAX_CONNECTIONS_PER_TOKEN", "1")
    async with both(server) as api:
        mine = token(sub="a")
        async with connected(api.port, mine) as ws:
            await subscribe(ws, {"1": None})
            async with connected(api.asgi, mine) as second:
                assert await closed(second) == (4429, "too many connections of this token")
            async with connected(api.asgi, token(sub="b")) as other:
                await subscribe(other, {"1": None})
                async with connected(api.asgi, token(sub="c")) as third:
                    assert await closed(third) == (4429, "too many connections of this address")
        await nobody_left(api)


async def test_a_drain_ends_each_with_1001_and_when_to_come_back(api: Both) -> None:
    async with connected(api.asgi, token()) as one, connected(api.asgi, token()) as other:
        for ws in (one, other):
            await subscribe(ws, {"1": None})
        await asyncio.gather(api.cron.parts.connections.drain(), self_closing(one, other))
        assert [one.close_code, other.close_code] == [1001, 1001]
        await nobody_left(api)
    async with connected(api.asgi, token()) as late:
        assert await closed(late) == (1001, "this server is going away: reconnect")


async def self_closing(*sockets: aiohttp.ClientWebSocketResponse) -> None:
    for ws in sockets:
        code, reason = await closed(ws)
        assert code == 1001 and reason.startswith("reconnect-after-ms=")


async def test_a_client_that_reads_too_slowly_gets_whole_frames_then_4408(api: Both) -> None:
    client = await watcher(api)
    await overwhelm(api)
    assert api.cron.parts.connections.turn.slow == 1
    frames = await client.until_close()
    assert (frames[-1].opcode, frames[-1].code) == (CLOSE, 4408)
    seqs = [int(each.payload.partition(b"|")[0]) for each in frames[:-1]]
    assert seqs and seqs == list(range(1, len(seqs) + 1))
    await nobody_left(api)
    client.close()


async def test_what_waits_for_one_that_never_reads_is_bounded_and_stalls_nobody(
    api: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CLOSE_WITHIN_S", 0.3)
    stalled = await watcher(api)
    async with connected(api.asgi, token()) as ws:
        await subscribe(ws, {"2": 0})
        (client,) = api.cron.parts.hub._topics["1"].clients
        most = 0
        for seq in range(1, 101):
            api.cron.parts.hub.deliver("1", seq, b"%d|" % seq + b"x" * 100_000)
            most = max(most, client.pending)
            await asyncio.sleep(0)
        assert 4_000_000 < most < 4_400_000 and client.is_closed
        await api.call("POST", "/api/v1/stores/2/open", auth=token())
        assert (await ws.receive_json())["id"] == "2:1"
        async with asyncio.timeout(5):
            while api.cron.parts.connections.open > 1:
                await asyncio.sleep(0.01)
    stalled.close()


async def test_one_that_resumes_far_behind_is_paced(api: Both) -> None:
    """It is sent all it missed, however slowly it reads, and is not given up for that."""
    await Commit(api.cron.parts.database)("1", 60, padding=100_000)
    client = await watcher(api)
    frames = [await client.frame(pause_s=0.001) for _ in range(60)]
    assert [json.loads(each.payload)["id"] for each in frames if each] == [
        f"1:{seq}" for seq in range(1, 61)
    ]
    client.close()


# -- what an ASGI server may do ------------------------------------------------------------------


class Wire:
    """An ASGI server's side of one connection."""

    def __init__(self, kind: str = "websocket", **scope: Any) -> None:
        headers = [(b"host", b"127.0.0.1"), (b"authorization", BEARER.partition(" ")[2].encode())]
        self.scope = {"type": kind, "headers": headers, "client": ("127.0.0.1", 5), **scope}
        self.came: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.sent: list[MutableMapping[str, Any]] = []
        self.error: Exception | None = None
        self.news = asyncio.Event()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(message)
        self.news.set()

    def run(self, cron: Solocron, *types: str) -> asyncio.Task[None]:
        for each in types:
            self.came.put_nowait({"type": each})
        return asyncio.create_task(cron.websocket(self.scope, self.came.get, self.send))

    async def saw(self, kind: str) -> MutableMapping[str, Any]:
        async with asyncio.timeout(10):
            while not (found := [each for each in self.sent if each["type"] == kind]):
                self.news.clear()
                await self.news.wait()
        return found[-1]


@pytest.fixture
async def cron(environment: pytest.MonkeyPatch) -> AsyncIterator[Solocron]:
    async with serving() as api:
        yield api.cron


async def test_a_server_that_cancels_its_client_has_it_told_1001(cron: Solocron) -> None:
    wire = Wire()
    running = wire.run(cron, "websocket.connect")
    await wire.saw("websocket.accept")
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    said = await wire.saw("websocket.close")
    assert said["code"] == 1001 and said["reason"].startswith("reconnect-after-ms=")
    assert not cron.parts.connections.open


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("after close")])
async def test_a_send_that_fails_ends_the_connection(cron: Solocron, error: Exception) -> None:
    wire = Wire()
    running = wire.run(cron, "websocket.connect")
    await wire.saw("websocket.accept")
    wire.error = error
    wire.came.put_nowait({"type": "websocket.receive", "text": '{"type": "ping"}'})
    async with asyncio.timeout(5):
        await running
    assert not cron.parts.connections.open and not cron.parts.hub.clients


async def test_a_client_that_is_gone_is_sent_nothing_more(cron: Solocron) -> None:
    wire = Wire()
    running = wire.run(cron, "websocket.connect")
    await wire.saw("websocket.accept")
    wire.came.put_nowait({"type": "websocket.disconnect", "code": 1006})
    await running
    assert [each["type"] for each in wire.sent] == ["websocket.accept"]
    gone = Wire()
    await gone.run(cron, "websocket.disconnect")
    assert gone.sent == []


async def test_a_drain_does_not_wait_for_a_peer_that_takes_nothing(
    cron: Solocron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solocron.web.connections._DRAIN_WITHIN_S", 0.1)
    wire = Wire()
    running = wire.run(cron, "websocket.connect")
    await wire.saw("websocket.accept")
    held = asyncio.Event()

    async def send(message: object) -> None:
        await held.wait()

    (socket,) = cron.parts.connections._open
    monkeypatch.setattr(socket, "_send", send)
    async with asyncio.timeout(2):
        await cron.parts.connections.drain()
        await running


async def test_a_service_that_is_not_started_refuses_and_says_what_is_missing(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cron = Solocron(load())
    wire = Wire()
    await wire.run(cron, "websocket.connect")
    assert [each.get("code") for each in wire.sent] == [None, 1011]
    assert "lifespan=cron.lifespan" in caplog.text and "not started" in wire.sent[1]["reason"]


async def test_as_a_whole_application_it_runs_the_service(
    environment: pytest.MonkeyPatch,
) -> None:
    cron = Solocron(load())
    async with on_uvicorn(cron.websocket, lifespan="on") as port:
        assert (await cron.readiness())[1]["draining"] is False
        async with connected(port, token()) as ws:
            await ws.send_json({"type": "ping"})
            assert (await ws.receive_json())["type"] == "pong"
    assert (await cron.readiness())[1]["draining"] is True


async def test_what_cannot_start_is_told_the_server(environment: pytest.MonkeyPatch) -> None:
    cron = Solocron(load())

    async def start() -> None:
        raise ConfigError("no such thing")

    environment.setattr(cron, "start", start)
    wire = Wire("lifespan")
    running = wire.run(cron, "lifespan.startup")
    with pytest.raises(ConfigError):
        await running
    assert wire.sent == [{"type": "lifespan.startup.failed", "message": "no such thing"}]
