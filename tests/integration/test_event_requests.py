"""Server-Sent Events: which requests are served, and to which pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest
from test_events import opened
from test_socket import nobody_left
from test_web import READER, Api, put, serving, token

from solocron.errors import StorageUnavailable
from streams import StreamClient


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        await put(api, "1", "2", "3")
        yield api


# -- what is refused -------------------------------------------------------------------------

MANY = ",".join(map(str, range(101)))


USELESS = [
    ("", "", 422, "stores is missing"),
    ("?store=1", "", 422, "stores is missing"),
    ("?stores=", "", 422, "stores has ''"),
    ("?stores=1,,2", "", 422, "stores has ''"),
    ("?stores=1:", "", 422, "'1:'"),
    ("?stores=1:x", "", 422, "'1:x'"),
    ("?stores=1:-1", "", 422, "'1:-1'"),
    ("?stores=1:%D9%A1", "", 422, "stores has"),
    ("?stores=1:9223372036854775808", "", 422, "'1:9223372036854775808'"),
    ("?stores=1:1:1", "", 422, "'1:1:1'"),
    ("?stores=a%20b", "", 422, "'a b'"),
    ("?stores=%00", "", 422, "stores has"),
    ("?stores=%ff", "", 422, "stores has"),
    ("?stores=1&stores=1:3", "", 422, "'1' twice"),
    ("?stores=" + "x" * 65, "", 422, "stores has"),
    (f"?stores={MANY}", "", 422, "the WebSocket takes more"),
    ("?stores=1", "nonsense!", 422, "Last-Event-ID has 'nonsense!'"),
    ("?stores=1", "1", 422, "Last-Event-ID has '1'"),
    ("?stores=1", "1:1,", 422, "Last-Event-ID has ''"),
    ("?stores=1", "1:1;2:2", 422, "Last-Event-ID has '1:1;2:2'"),
    ("?stores=1", "\u00e9:1", 422, "Last-Event-ID has"),
    ("?stores=1&lastEventId=1:x", "", 422, "Last-Event-ID has '1:x'"),
    ("?stores=1,9", "", 404, "store '9'"),
]


async def test_a_request_of_no_use_is_a_problem_that_names_it(api: Api) -> None:
    for query, header, status, says in USELESS:
        headers = [f"Last-Event-ID: {header}"] if header else []
        client = await StreamClient.connect(api.port, query, *headers, auth=token())
        problem = await client.problem()
        assert (client.status, problem["status"]) == (status, status), query
        assert says in problem["detail"]
        client.close()
    await nobody_left(api)


REFUSED = [
    (None, "?stores=1", 401),
    ("nonsense", "?stores=1", 401),
    (token(exp=1), "?stores=1", 401),
    (None, f"?stores=1&token={token()}", 401),  # never in the URL
    (None, f"?stores=1&access_token={token()}", 401),
    (token(scope="stores:write"), "?stores=1", 403),
    (READER, "?stores=1,3", 403),
    (READER, "?stores=*", 403),
    (token(stores=["*"]), "?stores=*", 403),
]


async def test_who_may_not_is_told_before_the_stream_begins(api: Api) -> None:
    for auth, query, status in REFUSED:
        client = await StreamClient.connect(api.port, query, auth=auth)
        problem = await client.problem()
        assert (client.status, problem["status"]) == (status, status), query
        assert ("www-authenticate" in client.headers) == (status == 401)
        assert "eyJ" not in json.dumps(problem)
        client.close()


async def test_other_methods_are_refused(api: Api) -> None:
    for method in ("HEAD", "POST", "PUT", "DELETE"):
        client = await StreamClient.connect(api.port, "?stores=1", auth=token(), method=method)
        assert (client.status, client.headers["allow"]) == (405, "GET,OPTIONS")
        client.close()


async def test_without_the_database_nothing_begins(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: Any) -> Any:
        raise StorageUnavailable("away")

    monkeypatch.setattr(api.cron.parts.hub._outbox, "heads", away)
    for stores in ("1", "*"):
        client = await StreamClient.connect(api.port, f"?stores={stores}", auth=token())
        assert (client.status, client.headers["retry-after"]) == (503, "5")
        assert "database" in (await client.problem())["detail"]
        client.close()
    await nobody_left(api)


async def test_a_database_that_goes_as_the_stream_begins_ends_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: Any) -> Any:
        raise StorageUnavailable("away")

    monkeypatch.setattr(api.cron.parts.hub, "subscribe", away)
    client = await StreamClient.connect(api.port, "?stores=1", auth=token())
    assert (client.status, await client.rest(), client.is_whole) == (200, [], True)
    await nobody_left(api)


async def test_a_fault_of_ours_ends_the_stream_and_is_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any) -> Any:
        raise KeyError("password")

    monkeypatch.setattr(api.cron.parts.hub, "subscribe", broken)
    client = await StreamClient.connect(api.port, "?stores=1", auth=token())
    assert (client.status, await client.rest(), client.is_whole) == (200, [], True)
    assert "an event stream failed" in caplog.text
    await nobody_left(api)


# -- pages of other origins ------------------------------------------------------------------

PAGE = "https://shop.example"


@pytest.fixture
async def shared(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    environment.setenv("SOLOCRON_ORIGINS", f"{PAGE}, https://other.example")
    async with serving() as api:
        await put(api, "1")
        yield api


async def test_a_page_of_an_allowed_origin_may_read(shared: Api) -> None:
    client, _ = await opened(shared, "1", f"Origin: {PAGE}")
    assert client.headers["access-control-allow-origin"] == PAGE
    assert client.headers["vary"] == "Origin"
    client.close()
    for auth, query, status in ((None, "?stores=1", 401), (token(), "?stores=9", 404)):
        client = await StreamClient.connect(shared.port, query, f"Origin: {PAGE}", auth=auth)
        assert (client.status, client.headers["access-control-allow-origin"]) == (status, PAGE)
        client.close()


async def test_its_browser_is_told_so_before(shared: Api) -> None:
    asks = ["Access-Control-Request-Method: GET",
            "Access-Control-Request-Headers: authorization,last-event-id"]  # fmt: skip
    client = await StreamClient.connect(
        shared.port, "?stores=1", f"Origin: {PAGE}", *asks, method="OPTIONS"
    )
    assert (client.status, client.headers["access-control-allow-origin"]) == (204, PAGE)
    assert client.headers["access-control-allow-methods"] == "GET"
    assert client.headers["access-control-allow-headers"] == "Authorization, Last-Event-ID"
    assert "access-control-allow-credentials" not in client.headers
    client.close()


STRANGERS = ("https://evil.example", "null", "http://shop.example", f"{PAGE}.evil.example", "é")


async def test_a_page_of_another_origin_may_not(shared: Api) -> None:
    for origin, method in product(STRANGERS, ("GET", "OPTIONS")):
        client = await StreamClient.connect(
            shared.port, "?stores=1", f"Origin: {origin}", auth=token(), method=method
        )
        assert client.status == 403 and "access-control-allow-origin" not in client.headers
        client.close()


async def test_an_origin_that_no_header_can_hold_is_not_echoed(shared: Api) -> None:
    client = await StreamClient.connect(
        shared.port, "?stores=9", f"Origin: {PAGE}/\u00e9", auth=token()
    )
    assert client.status == 404 and "access-control-allow-origin" not in client.headers
    client.close()


async def test_a_page_of_this_host_needs_no_leave(api: Api) -> None:
    client, _ = await opened(api, "1", f"Origin: http://127.0.0.1:{api.port}")
    assert "access-control-allow-origin" not in client.headers
    client.close()
