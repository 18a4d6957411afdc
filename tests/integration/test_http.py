"""HTTP at its edges: what no handler expects is still a problem with the right status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from test_web import STORE, Api, serving, token

from solocron.errors import StorageUnavailable
from solocron.service import Solocron
from solocron.settings import load
from solocron.web.auth import Forbidden
from solocron.web.guard import check_host, check_origin


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        yield api


async def raw(api: Api, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    """Status, headers and body."""
    headers = {"Authorization": f"Bearer {token()}", **options.pop("headers", {})}
    async with (
        aiohttp.ClientSession() as http,
        http.request(
            method, f"http://127.0.0.1:{api.port}{path}", headers=headers, **options
        ) as answer,
    ):
        text = await answer.text()
        return answer.status, answer.headers, json.loads(text) if text else None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/", 404),
        ("GET", "/api/v1/stores/1/open", 405),
        ("DELETE", "/api/v1/stores/1", 405),
        ("OPTIONS", "/api/v1/stores", 405),
        ("POST", "/ws", 405),
        ("GET", "/ws", 400),
        ("GET", "/api/v1/stores/9", 404),
        ("GET", "/api/v1/stores?limit=x", 422),
    ],
)
async def test_every_error_is_a_problem(api: Api, method: str, path: str, status: int) -> None:
    code, headers, body = await raw(api, method, path)
    assert (code, body["status"], body["type"]) == (status, status, "about:blank")
    assert headers["Content-Type"].startswith("application/problem+json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert ("Allow" in headers) == (status == 405)


async def test_every_answer_forbids_sniffing_and_storing(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/api/v1/stores"):
        status, headers, _ = await raw(api, "GET", path)
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert headers["Cache-Control"] == "no-store"
        status, headers, body = await raw(api, "HEAD", path)
        assert (status, headers["X-Content-Type-Options"], body) == (200, "nosniff", None)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"\xff\xfe", "application/json", 422),
        ('{"name": "caf\u00e9"}'.encode("latin-1"), "application/json", 422),
        (
            b'{"name": "x"}',
            "application/json; charset=no-such",
            422,
        ),  # the fields are not all there
        (b"[" * 60_000, "application/json", 422),
        (b"[1]", "application/json", 422),
        (b'{"name": ' + b"9" * 5_000 + b"}", "application/json", 422),
        (b'{"name": "' + b"x" * 70_000 + b'"}', "application/json", 413),
        (json.dumps({**STORE, "name": "\ud800"}).encode(), "application/json", 422),
        (json.dumps({**STORE, "name": "\x00"}).encode(), "application/json", 422),
        (b'{"name": NaN}', "application/json", 422),
    ],
)
async def test_a_body_of_no_use_is_refused(api: Api, body: bytes, kind: str, status: int) -> None:
    code, _, answer = await raw(
        api, "PUT", "/api/v1/stores/1", data=body, headers={"Content-Type": kind}
    )
    assert (code, answer["status"]) == (status, status)


async def test_a_body_without_a_length_is_bounded_too(api: Api) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    code, _, _ = await raw(api, "PUT", "/api/v1/stores/1", data=endless())
    assert code == 413


async def test_a_fault_of_ours_says_nothing_of_itself(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any, **more: Any) -> Any:
        raise KeyError("password")

    async def away(*args: Any, **more: Any) -> Any:
        raise StorageUnavailable("postgresql://user:password@host is away")

    for fault, status in ((broken, 500), (away, 503)):
        monkeypatch.setattr(api.cron.parts.stores, "page", fault)
        code, headers, answer = await raw(api, "GET", "/api/v1/stores")
        assert (code, headers["X-Content-Type-Options"]) == (status, "nosniff")
        assert "password" not in json.dumps(answer)


async def test_a_header_that_is_no_text_is_refused(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"GET /api/v1/stores HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Authorization: Bearer \xff\xfe.a.b\r\n\r\n"
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_in_a_hosts_application_our_routes_answer_alike(
    environment: pytest.MonkeyPatch,
) -> None:
    app = web.Application(client_max_size=10**9)
    cron = Solocron(load())
    cron.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api = Api(cron, runner.addresses[0][1], None)  # type: ignore[arg-type] # `raw` has its own
    body = json.dumps({**STORE, "name": "x" * 70_000}).encode()
    code, headers, answer = await raw(api, "PUT", "/api/v1/stores/1", data=body)
    assert (code, answer["status"], headers["Cache-Control"]) == (413, 413, "no-store")
    await runner.cleanup()


# -- origin and host -------------------------------------------------------------------------


def request(host: str, origin: str | None = None) -> web.Request:
    headers = {"Host": host, **({"Origin": origin} if origin is not None else {})}
    return make_mocked_request("GET", "/", headers=headers)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("shop.example", "http://shop.example"),
        ("shop.example", "https://shop.example"),
        ("Shop.example:80", "http://shop.EXAMPLE"),
        ("shop.example:443", "https://shop.example"),
        ("shop.example", "http://shop.example:80"),
        ("shop.example:8080", "HTTP://shop.example:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("[::1]", "http://[::1]:80"),
        ("here", "https://allowed.example"),
        ("here", "https://ALLOWED.example:443"),
    ],
)
def test_a_page_of_this_host_or_an_allowed_one_may_ask(host: str, origin: str) -> None:
    check_origin(request(host, origin), frozenset({"https://allowed.example"}))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("", "null"),
        ("null", "null"),
        ("", ""),
        ("", "http://"),
        ("shop.example", ""),
        ("shop.example", "file://"),
        ("shop.example", "http://"),
        ("shop.example", "http://["),
        ("shop.example", "http://shop.example:x"),
        ("shop.example", "http://shop.example:99999"),
        ("shop.example", "http://shop.example.evil"),
        ("shop.example", "http://evil@other"),
        ("shop.example:8080", "http://shop.example"),
        ("shop.example:443", "http://shop.example"),
        ("[", "http://["),
        ("here", "http://allowed.example"),
        ("here", "ftp://allowed.example"),
    ],
)
def test_any_other_page_may_not(host: str, origin: str) -> None:
    with pytest.raises(Forbidden):
        check_origin(request(host, origin), frozenset({"https://allowed.example"}))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:80", "127.9.9.9"]
)
def test_without_a_secret_this_machines_names_are_served(host: str) -> None:
    check_host(request(host))


@pytest.mark.parametrize(
    "host", ["evil.example", "[", "localhost.evil.example", "10.0.0.1", "[::", "x:y"]
)
def test_without_a_secret_no_other_name_is(host: str) -> None:
    with pytest.raises(Forbidden):
        check_host(request(host))
