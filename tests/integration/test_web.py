"""The WebSocket and REST sides of a real service: what is served, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from unittest.mock import Mock

import aiohttp
import jwt
import pytest
from aiohttp import WSMsgType
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives.asymmetric import rsa

from clients import Listener, connected, subscribe
from conftest import SECRET
from solocron.clock import SystemClock
from solocron.errors import ConfigError
from solocron.service import Solocron
from solocron.settings import load
from solocron.web import session as session_module
from solocron.web.auth import Forbidden
from solocron.web.guard import check_host

FAR = 4_000_000_000
STORE = {"name": "Mitte", "timezone": "Europe/Berlin", "hours": "Mo-Su 09:00-17:00"}


def token(key: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    defaults = {"aud": "solocron", "exp": FAR, "stores": "*", "scope": "admin"}
    return jwt.encode({**defaults, **claims}, key, algorithm=algorithm)


READER = token(scope="notifications:read", stores=["1", "2"])


class Api:
    """A running service and an HTTP client of it."""

    def __init__(self, cron: Solocron, port: int, http: aiohttp.ClientSession) -> None:
        self.cron, self.port, self._http = cron, port, http

    async def call(
        self, method: str, path: str, body: Any = None, *, auth: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        if auth is not None:
            headers["Authorization"] = f"Bearer {auth}"
        async with self._http.request(
            method, f"http://127.0.0.1:{self.port}{path}", json=body, headers=headers
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def ready(self) -> None:
        async with asyncio.timeout(10):
            while (await self.call("GET", "/readyz"))[0] != 200:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(cron: Solocron | None = None) -> AsyncIterator[Api]:
    cron = cron or Solocron(load())
    async with cron.serving() as server, aiohttp.ClientSession() as http:
        api = Api(cron, server.port, http)
        await api.ready()
        yield api


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        await put(api, "1", "2", "3")
        yield api


async def put(api: Api, *store_ids: str) -> None:
    """Create these stores."""
    for each in store_ids:
        assert (await api.call("PUT", f"/api/v1/stores/{each}", STORE, auth=token()))[0] == 201


async def closed(ws: aiohttp.ClientWebSocketResponse) -> tuple[int | None, str]:
    """The code and reason the server closes with."""
    async with asyncio.timeout(10):
        while (message := await ws.receive()).type is not WSMsgType.CLOSE:
            assert message.type is WSMsgType.TEXT
    return ws.close_code, message.extra


# -- REST ----------------------------------------------------------------------------------


async def test_stores_are_put_got_listed_opened_and_closed(api: Api) -> None:
    auth = token()
    status, body = await api.call("GET", "/api/v1/stores/1", auth=auth)
    assert (status, body["hours"], body["is_open"]) == (200, STORE["hours"], False)
    changed = {**STORE, "name": "Moabit"}
    status, body = await api.call("PUT", "/api/v1/stores/1", changed, auth=auth)
    assert (status, body["name"]) == (200, "Moabit")
    for action, seq in (("open", 1), ("open", 1), ("close", 2), ("close", 2)):
        status, body = await api.call("POST", f"/api/v1/stores/1/{action}", auth=auth)
        assert (status, body["is_open"], body["notification_seq"]) == (200, action == "open", seq)
    _, first = await api.call("GET", "/api/v1/stores?limit=2", auth=auth)
    assert ([each["id"] for each in first["stores"]], first["next"]) == (["1", "2"], "2")
    _, rest = await api.call("GET", "/api/v1/stores?limit=2&after=2", auth=auth)
    assert ([each["id"] for each in rest["stores"]], rest["next"]) == (["3"], None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/api/v1/stores/9", None, 404, "'9'"),
        ("GET", "/api/v1/stores/%00", None, 404, "none with that id"),
        ("GET", "/api/v1/stores?limit=0", None, 422, "limit is '0'"),
        ("GET", "/api/v1/stores?open=maybe", None, 422, "'maybe'"),
        ("GET", "/api/v1/stores?after=%00", None, 422, "after"),
        ("POST", "/api/v1/stores/9/open", None, 404, "'9'"),
        ("PUT", "/api/v1/stores/1", {**STORE, "timezone": "Mars/Base"}, 422, "'Mars/Base'"),
        ("PUT", "/api/v1/stores/1", {**STORE, "hours": "Mo-Fr nine"}, 422, "'Mo-Fr nine'"),
        ("PUT", "/api/v1/stores/1", {**STORE, "id": "2"}, 422, "of the path"),
        ("PUT", "/api/v1/stores/1", {**STORE, "is_open": True}, 422, "is_open"),
        ("PUT", "/api/v1/stores/1", {**STORE, "colour": "red"}, 422, "colour"),
        ("PUT", "/api/v1/stores/1", ["a"], 422, "JSON object"),
        ("PUT", "/api/v1/stores/a%20b", STORE, 422, "'a b'"),
    ],
)
async def test_bad_requests_name_the_value(
    api: Api, method: str, path: str, body: Any, status: int, says: str
) -> None:
    got, answer = await api.call(method, path, body, auth=token())
    assert (got, answer["status"]) == (status, status)
    assert says in answer["detail"]


async def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    body = {**STORE, "name": "x" * 100_000}
    assert (await api.call("PUT", "/api/v1/stores/1", body, auth=token()))[0] == 413


async def test_a_token_sees_and_changes_only_its_own_stores(api: Api) -> None:
    writer = token(scope="stores:write", stores=["2"])
    _, listed = await api.call("GET", "/api/v1/stores", auth=READER)
    assert [each["id"] for each in listed["stores"]] == ["1", "2"]
    assert (await api.call("GET", "/api/v1/stores/3", auth=READER))[0] == 403
    assert (await api.call("POST", "/api/v1/stores/1/open", auth=READER))[0] == 403
    assert (await api.call("POST", "/api/v1/stores/1/open", auth=writer))[0] == 403
    assert (await api.call("PUT", "/api/v1/stores/3", STORE, auth=writer))[0] == 403
    assert (await api.call("POST", "/api/v1/stores/2/open", auth=writer))[0] == 200


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "",
        "nonsense",
        "x" * 8_000,
        token(key="f" * 64),
        token(exp=1),
        token(nbf=FAR),
        token(aud="other"),
        jwt.encode({"exp": FAR, "stores": "*", "scope": "admin"}, SECRET),
        jwt.encode({"aud": "solocron", "stores": "*"}, SECRET),
        jwt.encode({"aud": "solocron", "exp": FAR, "stores": "*"}, None, algorithm="none"),
        token(stores={"1": 2}),
        token(exp=True),
        token(algorithm="HS512"),
    ],
)
async def test_a_bad_token_is_refused_on_every_path(api: Api, bad: str | None) -> None:
    assert (await api.call("GET", "/api/v1/stores", auth=bad))[0] == 401
    assert (await api.call("POST", "/api/v1/stores/1/open", auth=bad))[0] == 401
    if bad:
        async with connected(api.port, bad) as ws:
            assert (await closed(ws))[0] == 4401
    async with connected(api.port) as ws:
        await ws.send_json({"type": "authenticate", "token": bad})
        assert (await closed(ws))[0] == 4401


def forge(claims: dict[str, Any], key: bytes) -> str:
    """An HS256 token that a library would refuse to sign with such a key."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    header = part(json.dumps({"alg": "HS256", "kid": "k1"}).encode())
    signed = header + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.digest(key, signed, "sha256"))).decode()


async def test_a_public_key_is_no_shared_secret(
    environment: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Key confusion: a token signed by HMAC with the published RSA key is refused."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps({"keys": [{**jwk, "kid": "k1", "alg": "RS256", "use": "sig"}]}))
    environment.delenv("SOLOCRON_AUTH_SECRET")
    environment.setenv("SOLOCRON_AUTH_JWKS", str(keys))
    claims = {"aud": "solocron", "exp": FAR, "stores": "*", "scope": "admin"}
    authenticator = Solocron(load()).parts.authenticator
    good = jwt.encode(claims, private, algorithm="RS256", headers={"kid": "k1"})
    assert authenticator.authenticate(good).stores is None
    forged = forge(claims, json.dumps(jwk).encode())
    unknown = jwt.encode(claims, private, algorithm="RS256", headers={"kid": "k2"})
    for bad in (forged, unknown):
        with pytest.raises(Exception, match="refused"):
            authenticator.authenticate(bad)
    keys.write_text('{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]}')
    with pytest.raises(ConfigError, match="SOLOCRON_AUTH_JWKS"):
        Solocron(load())


# -- WebSocket -----------------------------------------------------------------------------


async def test_websocket_notifications_follow_a_subscribe(api: Api) -> None:
    async with connected(api.port, READER) as ws:
        assert ws.protocol == "solocron.v1"
        answer = await subscribe(ws, {"1": None, "2": None})
        assert answer["1"] == {"seq": 0, "recovered": True}
        await api.call("POST", "/api/v1/stores/1/open", auth=token())
        await api.call("POST", "/api/v1/stores/3/open", auth=token())
        await api.call("POST", "/api/v1/stores/1/close", auth=token())
        listener = Listener()
        await listener.listen(ws, until=2)
    first, second = listener.events
    assert first["id"] == "1:1" and first["source"] == "/stores/1"
    assert (first["type"], second["type"]) == ("store.opened", "store.closed")
    assert first["specversion"] == "1.0" and first["time"].endswith("Z")
    assert first["data"] == {"name": "Mitte", "reason": "api"}
    async with connected(api.port, READER) as ws:  # what was seen is not sent again
        await subscribe(ws, {"1": 1})
        again = Listener()
        await again.listen(ws, until=1)
        assert again.seqs == {"1": [2]}


async def test_unsubscribe_ends_the_notifications_of_a_store(api: Api) -> None:
    async with connected(api.port, READER) as ws:
        await subscribe(ws, {"1": None, "2": None})
        await ws.send_json({"type": "unsubscribe", "stores": ["1", "17"]})
        assert await ws.receive_json() == {"type": "unsubscribed", "stores": ["1", "17"]}
        await subscribe(ws, {"2": 0})
        await api.call("POST", "/api/v1/stores/1/open", auth=token())
        await api.call("POST", "/api/v1/stores/2/open", auth=token())
        listener = Listener()
        await listener.listen(ws, until=1)
        assert listener.seqs == {"2": [1]}


async def test_a_token_for_some_stores_never_hears_of_another(api: Api) -> None:
    async with connected(api.port, READER) as ws:
        await ws.send_json({"type": "subscribe", "stores": {"1": 0, "3": 0, "nowhere": 0}})
        listener = Listener()
        while len(listener.answers) < 2:
            listener.hear(await ws.receive_str())
        assert list(listener.answers[0]["stores"]) == ["1"]
        assert listener.answers[1]["code"] == "forbidden"
        assert listener.answers[1]["stores"] == ["3", "nowhere"]
        await api.call("POST", "/api/v1/stores/3/open", auth=token())
        await api.call("POST", "/api/v1/stores/1/open", auth=token())
        await listener.listen(ws, until=1)
        assert listener.seqs == {"1": [1]}
    async with connected(api.port, token(scope="stores:write")) as ws:
        assert (await closed(ws))[0] == 4403


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("nonsense", "'nonsense'"),
        ("[1]", "JSON object"),
        ('{"type": "dance"}', "'dance'"),
        ('{"type": "subscribe"}', "stores must be"),
        ('{"type": "subscribe", "stores": {"1": -1}}', "'-1'"),
        ('{"type": "subscribe", "stores": {"1": 1.5}}', "'1.5'"),
        ('{"type": "subscribe", "stores": {"1": true}}', "'True'"),
        ('{"type": "subscribe", "stores": {"\\u0000": 1}}', "can have the id"),
        ('{"type": "subscribe", "stores": {"' + "x" * 65 + '": 1}}', "can have the id"),
        ('{"type": "unsubscribe", "stores": "1"}', "list of store ids"),
        ("[" * 100_000, "not JSON"),
    ],
)
async def test_a_bad_frame_is_answered_and_costs_nothing(api: Api, frame: str, says: str) -> None:
    async with connected(api.port, token()) as ws:
        await subscribe(ws, {"1": None})
        await ws.send_str(frame)
        error = await ws.receive_json()
        assert (error["type"], error["code"]) == ("error", "invalid")
        assert says in error["message"]
        await api.call("POST", "/api/v1/stores/1/open", auth=token())
        assert (await ws.receive_json())["id"] == "1:1"


async def test_bad_frames_without_end_close_the_connection(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        for _ in range(10):
            await ws.send_bytes(b"x")
        assert (await closed(ws))[0] == 1008


async def test_an_oversized_frame_closes_with_1009(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        await ws.send_str("x" * (session_module.MAX_FRAME + 1))
        assert (await closed(ws))[0] == 1009


async def test_10_000_stores_in_one_frame(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        stores: dict[str, int | None] = {f"store-{number}": 0 for number in range(9_999)}
        await ws.send_json({"type": "subscribe", "stores": {**stores, "1": None}})
        assert list((await ws.receive_json())["stores"]) == ["1"]
        error = await ws.receive_json()
        assert (error["code"], error["stores"]) == ("unknown-store", list(stores))
        await ws.send_json({"type": "subscribe", "stores": {**stores, "1": None, "2": None}})
        assert "10001 stores" in (await ws.receive_json())["message"]


async def test_an_expiring_token_closes_the_socket(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SystemClock().now_ms() / 1000
    async with connected(api.port, token(exp=now - 4)) as ws:  # 5 s of leeway: 1 s left
        await subscribe(ws, {"1": None})
        assert await closed(ws) == (4401, "the token has expired")


async def test_a_foreign_origin_is_refused(api: Api) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with connected(api.port, token(), origin="https://evil.example"):
            pass
    assert caught.value.status == 403
    status, _ = await api.call(
        "POST", "/api/v1/stores/1/open", auth=token(), Origin="https://evil.example"
    )
    assert status == 403
    async with connected(api.port, token(), origin=f"http://127.0.0.1:{api.port}") as ws:
        await subscribe(ws, {"1": None})


async def test_more_connections_than_allowed_are_told_so(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_MAX_CONNECTIONS", "1")
    async with serving() as api, connected(api.port, token()) as ws:
        await ws.send_str("x")
        await ws.receive_json()
        async with connected(api.port, token()) as second:
            assert (await closed(second))[0] == 4429


async def test_a_stop_closes_sockets_with_1001_and_when_to_come_back(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        await subscribe(ws, {"1": None})
        draining = asyncio.create_task(api.cron.drain())
        code, reason = await closed(ws)
        await draining
        assert code == 1001
        assert reason.startswith("reconnect-after-ms=")
    assert (await api.call("GET", "/readyz"))[0] == 503


# -- access without a secret -----------------------------------------------------------------


async def test_without_a_secret_only_loopback_is_served(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("SOLOCRON_AUTH_SECRET")
    async with serving() as api:
        assert (await api.call("GET", "/api/v1/stores"))[0] == 200
        status, answer = await api.call("GET", "/api/v1/stores", Host="rebound.example")
        assert (status, "rebound.example" in answer["detail"]) == (403, True)
    for peer, served in (("127.0.0.1", True), ("::1", True), ("192.0.2.7", False)):
        transport = Mock(get_extra_info=lambda name, default=None, peer=peer: (peer, 1))
        request = make_mocked_request("GET", "/", {"Host": "localhost"}, transport=transport)
        with nullcontext() if served else pytest.raises(Forbidden):
            check_host(request)
    environment.setenv("SOLOCRON_HOST", "0.0.0.0")
    with pytest.raises(ConfigError, match=r"SOLOCRON_HOST is '0\.0\.0\.0'"):
        async with Solocron(load()).serving():
            raise AssertionError


async def test_a_port_in_use_is_named(api: Api, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_PORT", str(api.port))
    told = rf":{api.port}: address already in use; .*another worker.*: set SOLOCRON_PORT"
    with pytest.raises(ConfigError, match=told):
        async with Solocron(load()).serving():
            raise AssertionError


async def test_probes_need_no_token(api: Api) -> None:
    assert await api.call("GET", "/healthz") == (200, {"status": "ok"})
    status, answer = await api.call("GET", "/readyz")
    assert (status, answer["redis"], answer["database"]) == (200, "up", "up")
