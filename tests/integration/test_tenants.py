"""A token for one store learns nothing of another, on any path; and ends when it says so."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from test_web import STORE, Api, closed, forge, serving, token
from yarl import URL

from clients import Listener, connected, subscribe
from solocron.clock import SystemClock
from solocron.service import Solocron
from solocron.settings import load
from solocron.web.auth import Unauthenticated

MINE = token(stores=["mine"], scope="notifications:read stores:write")
HIDDEN = ("theirs", "nowhere")  # one that there is, and one that there is not


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        for store_id in ("mine", "theirs"):
            store = {**STORE, "name": f"Shop {store_id}", "contact": f"{store_id}@shop.example"}
            path = f"/api/v1/stores/{store_id}"
            assert (await api.call("PUT", path, store, auth=token()))[0] == 201
            for action in ("open", "close"):
                await api.call("POST", f"{path}/{action}", auth=token())
        yield api


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None), ("HEAD", "", None), ("PUT", "", STORE),
        ("PUT", "", {"id": "mine", **STORE}), ("PUT", "", ["no store"]),
        ("POST", "/open", None), ("POST", "/close", None),
    ],
)  # fmt: skip
async def test_rest_answers_alike_whether_a_hidden_store_exists(
    api: Api, method: str, path: str, body: Any
) -> None:
    answers = []
    for store_id in HIDDEN:
        status, answer = await api.call(method, f"/api/v1/stores/{store_id}{path}", body, auth=MINE)
        answers.append((status, json.dumps(answer).replace(store_id, "?")))
    assert answers[0] == answers[1] and answers[0][0] == 403
    _, theirs = await api.call("GET", "/api/v1/stores/theirs", auth=token())
    assert theirs["name"] == "Shop theirs"
    assert (await api.call("GET", "/api/v1/stores/nowhere", auth=token()))[0] == 404


@pytest.mark.parametrize(
    "query", ["", "?limit=1000", "?after=a", "?after=mine", "?after=theirs", "?open=false"]
)
async def test_a_list_has_no_hidden_store(api: Api, query: str) -> None:
    _, listed = await api.call("GET", f"/api/v1/stores{query}", auth=MINE)
    assert {each["id"] for each in listed["stores"]} <= {"mine"}
    assert listed["next"] is None


async def test_an_id_of_a_body_does_not_reach_another_store(api: Api) -> None:
    body = {**STORE, "id": "theirs", "name": "taken over"}
    assert (await api.call("PUT", "/api/v1/stores/mine", body, auth=MINE))[0] == 422
    for path in ("mine/../theirs", "mine%2F..%2Ftheirs", "%2e%2e/stores/theirs", "mine%00theirs"):
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{api.port}/api/v1/stores/{path}"
            headers = {"Authorization": f"Bearer {MINE}"}
            async with http.put(URL(url, encoded=True), json=STORE, headers=headers) as answer:
                assert answer.status in (400, 403, 404), path
    _, theirs = await api.call("GET", "/api/v1/stores/theirs", auth=token())
    assert theirs["name"] == "Shop theirs"


async def test_a_socket_answers_alike_whether_a_hidden_store_exists(api: Api) -> None:
    answers = []
    for store_id in HIDDEN:
        for last in (None, 0, 1, 2**60):
            async with connected(api.port, MINE) as ws:
                await ws.send_json({"type": "subscribe", "stores": {store_id: last}})
                await ws.send_json({"type": "unsubscribe", "stores": [store_id]})
                await ws.send_json({"type": "subscribe", "stores": {"mine": None}})
                async with asyncio.timeout(10):
                    heard = [await ws.receive_json() for _ in range(4)]
                assert heard[0] == {"type": "subscribed", "stores": {}}
                assert heard[1].pop("stores") == [store_id]
                assert heard[2] == {"type": "unsubscribed", "stores": [store_id]}
                assert list(heard[3]["stores"]) == ["mine"]
                answers.append(heard[1])
    assert all(each == answers[0] for each in answers) and answers[0]["code"] == "forbidden"


async def test_live_and_resumed_notifications_are_only_ones_own(api: Api) -> None:
    async with connected(api.port, MINE) as ws, connected(api.port, token()) as witness:
        await subscribe(witness, {"theirs": None})
        await ws.send_json({"type": "subscribe", "stores": {"theirs": 0, "mine": 0}})
        listener = Listener()
        await listener.listen(ws, until=2)
        for store_id in ("theirs", "mine"):
            await api.call("POST", f"/api/v1/stores/{store_id}/open", auth=token())
        async with asyncio.timeout(10):
            assert (await witness.receive_json())["id"] == "theirs:3"
            await listener.listen(ws, until=3)
        assert listener.seqs == {"mine": [1, 2, 3]}
        assert "theirs" not in json.dumps(listener.answers[0])


async def test_the_dashboard_is_for_operators_and_names_no_store(api: Api) -> None:
    for auth in (MINE, token(scope="stores:write notifications:read")):
        assert (await api.call("GET", "/dashboard", auth=auth))[0] == 403
    await api.cron.run_job("store-auto-close")
    await api.cron.run_job("store-open-reminder")
    status, page = await api.call("GET", "/dashboard", auth=token(stores=[], scope="jobs:run"))
    assert status == 200 and "store-auto-close" in page
    assert not any(each in page for each in ("theirs", "mine", "shop.example"))


async def test_an_audience_of_readers_sees_no_contact(api: Api) -> None:
    reader = token(stores=["mine"], scope="notifications:read")
    for path in ("/api/v1/stores", "/api/v1/stores/mine"):
        assert "shop.example" not in json.dumps(await api.call("GET", path, auth=reader))
        assert "mine@shop.example" in json.dumps(await api.call("GET", path, auth=MINE))


# -- the end of a token ----------------------------------------------------------------------


@pytest.mark.parametrize(("past_s", "good"), [(4, True), (7, False)])
async def test_clocks_may_differ_by_five_seconds(api: Api, past_s: float, good: bool) -> None:
    now = SystemClock().now_ms() / 1000
    for auth in (token(exp=now - past_s), token(nbf=now + past_s)):
        status, _ = await api.call("GET", "/api/v1/stores", auth=auth)
        assert status == (200 if good else 401)


async def test_a_token_of_the_first_frame_ends_its_socket_too(api: Api) -> None:
    soon = token(stores=["mine"], exp=SystemClock().now_ms() / 1000 - 4.3)
    async with connected(api.port) as ws:
        await ws.send_json({"type": "authenticate", "token": soon})
        await subscribe(ws, {"mine": None})
        assert await closed(ws) == (4401, "the token has expired")
    assert (await api.call("GET", "/api/v1/stores", auth=soon))[0] == 401


async def test_a_connection_outlives_no_token(api: Api) -> None:
    """An HTTP connection that is kept open is asked for the token with each request."""
    soon = token(stores=["mine"], exp=SystemClock().now_ms() / 1000 - 4.5)
    assert (await api.call("GET", "/api/v1/stores", auth=soon))[0] == 200
    async with asyncio.timeout(5):
        while (await api.call("GET", "/api/v1/stores", auth=soon))[0] != 401:
            await asyncio.sleep(0.05)


# -- keys ------------------------------------------------------------------------------------


def test_no_text_of_a_public_key_and_no_kid_is_a_secret(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Key confusion with each way to write the key, and headers that point elsewhere."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key()
    entry = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(public)), "kid": "k1", "alg": "RS256"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [entry]}))
    environment.delenv("SOLOCRON_AUTH_SECRET")
    environment.setenv("SOLOCRON_AUTH_JWKS", str(tmp_path / "jwks.json"))
    authenticator = Solocron(load()).parts.authenticator
    claims = {"aud": "solocron", "exp": 4_000_000_000, "stores": "*", "scope": "admin"}
    spki, pkcs1 = PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1
    texts = [
        public.public_bytes(encoding, form)
        for encoding in (Encoding.PEM, Encoding.DER) for form in (spki, pkcs1)
    ]  # fmt: skip
    modulus = base64.urlsafe_b64decode(entry["n"] + "==")
    bad = [forge(claims, key) for key in (*texts, texts[0].strip(), modulus, b"k1", b"")]
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(stranger.public_key())), "kid": "k1"}
    for headers in (
        {"kid": "k1"}, {"kid": "k1", "jwk": own}, {"kid": "k1", "jku": "http://localhost/"},
        {"kid": "k1", "x5u": "file:///etc/passwd"}, {"kid": "../../dev/null"}, {"kid": ""},
        {"kid": "k1' OR '1'='1"}, {"kid": "k1\0"}, {},
    ):  # fmt: skip
        bad.append(jwt.encode(claims, stranger, algorithm="RS256", headers=headers))
    for each in bad:
        with pytest.raises(Unauthenticated):
            authenticator.authenticate(each)
    good = jwt.encode(claims, private, algorithm="RS256", headers={"kid": "k1", "jwk": own})
    assert authenticator.authenticate(good).stores is None
