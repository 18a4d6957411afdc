"""The browser's client in a real browser, against a real service: what it discards, resumes, renews
and tells; and how its files are served."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page
from test_client_live import its_socket, watched, with_shops
from test_socket import nobody_left
from test_socket_tokens import ends_in, of, turn
from test_web import STORE, Api, token

from browsing import browser_page, shows, start
from proxy import Proxy
from raw import RawClient
from solocron.notifications.event import cloud_event
from solocron.storage.outbox import Notification
from solocron.web.static import TYPES
from workers import until

README = Path(__file__).parents[2] / "README.md"

ALL = {"tokens": [token()]}


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with with_shops() as api:
        yield api


@pytest.fixture
async def page(api: Api) -> AsyncIterator[Page]:
    async with browser_page() as page:
        yield page


async def close(api: Api, store: str) -> None:
    await api.call("POST", f"/api/v1/stores/{store}/close", auth=token())


async def states(page: Page) -> list[str]:
    return [state for state, _ in await page.evaluate("states")]


# -- the client --------------------------------------------------------------------------------


async def test_a_repeat_on_the_wire_is_told_once(api: Api, page: Page) -> None:
    """The service is made to forget how far its client has come."""
    await start(page, api.port, {"1": 0}, **ALL)
    await turn(api, "1")
    await shows(page, "heard", [["1", 1, None]])
    hub = api.cron.parts.hub
    clients = hub._topics["1"].clients
    for each in clients:
        clients[each] = 0
    hub.deliver("1", 1, cloud_event(Notification("1", 1, "store.opened", {}, 0)))
    assert list(clients.values()) == [1]  # it was sent again
    await close(api, "1")
    await shows(page, "heard", [["1", 1, None], ["1", 2, None]])
    assert await states(page) == ["connecting", "open"]


async def test_what_was_missed_is_told_after_a_cut(api: Api, page: Page) -> None:
    sent: list[Any] = []
    page.on("websocket", lambda ws: ws.on("framesent", lambda each: sent.append(json.loads(each))))
    await start(page, api.port, {"1": None, "2": 0}, **ALL)
    await watched(api, "1", "2")
    await turn(api, "2")
    await shows(page, "heard", [["2", 1, None]])
    its_socket(api).drop()
    await turn(api, "1")
    await shows(page, "heard", [["2", 1, None], ["1", 1, None]])
    assert [each["stores"] for each in sent if each["type"] == "subscribe"] == [
        {"1": None, "2": 0}, {"1": 0, "2": 1},
    ]  # fmt: skip
    await close(api, "2")
    await shows(page, "client.positions", {"1": 1, "2": 2})
    assert (await states(page))[-1] == "open"


async def test_all_stores_are_resumed_by_their_place_in_the_feed(api: Api, page: Page) -> None:
    await turn(api, "1")
    await start(page, api.port, {"*": 0}, **ALL)
    await shows(page, "heard", [["1", 1, 1]])
    its_socket(api).drop()
    await turn(api, "3")
    await shows(page, "heard", [["1", 1, 1], ["3", 1, 2]])
    assert await page.evaluate("client.positions") == {"*": 2}
    with pytest.raises(Exception, match="watch it alone"):
        await page.evaluate("client.subscribe({ 1: null })")


async def test_what_is_not_kept_any_more_is_a_gap(api: Api, page: Page) -> None:
    await turn(api, "1")
    await start(page, api.port, {"1": 70}, **ALL)
    await shows(page, "gaps", [{"storeId": "1", "last": 70, "newest": 1}])
    await close(api, "1")
    await shows(page, "heard", [["1", 2, None]])


async def test_stores_come_and_go_over_the_open_socket(api: Api, page: Page) -> None:
    await start(page, api.port, {"1": 0}, **ALL)
    await watched(api, "1")
    socket = its_socket(api)
    await page.evaluate("client.subscribe({ 2: 0, 9: 0 })")
    await shows(page, "refused", [["unknown-store", "9"]])
    await page.evaluate("client.unsubscribe(['1', '1', '7'])")
    await watched(api, "2")
    await turn(api, "1", "2")
    await shows(page, "heard", [["2", 1, None]])
    assert its_socket(api) is socket
    assert await page.evaluate("client.positions") == {"2": 1}
    await page.evaluate("client.close()")
    await shows(page, "states.at(-1)", ["closed", ""])
    await nobody_left(api)


async def test_a_token_is_renewed_over_the_open_socket_before_its_end(api: Api, page: Page) -> None:
    tokens = [of("1", "2", exp=ends_in(3)), of("2", exp=ends_in(4)), of("2")]
    await start(page, api.port, {"1": 0, "2": 0}, tokens=tokens)
    await watched(api, "1", "2")
    socket = its_socket(api)
    await shows(page, "refused", [["forbidden", "1"]])
    await shows(page, "used", 3)
    await turn(api, "1", "2")
    await shows(page, "heard", [["2", 1, None]])
    assert its_socket(api) is socket


async def test_a_token_that_is_refused_is_replaced_once(api: Api, page: Page) -> None:
    await turn(api, "1")
    await start(page, api.port, {"1": 0}, tokens=[of("1", exp=1), of("1")])
    await shows(page, "heard", [["1", 1, None]])
    await start(page, api.port, {"1": 0}, tokens=[of("1", exp=1)])
    await shows(page, "states.at(-1)[0]", "closed")
    assert (await page.evaluate("states.at(-1)[1]")).startswith("4401 the token is refused")
    assert await page.evaluate("used") == 2
    for given, code in ((None, "4401"), (token(scope="stores:write"), "4403")):
        await start(page, api.port, {"1": 0}, **({"token": given} if given else {}))
        await shows(page, "states.at(-1)[1].slice(0, 4)", code)
        assert await states(page) == ["connecting", "closed"]


async def test_a_server_that_leaves_is_come_back_to_when_it_asks(
    environment: pytest.MonkeyPatch, api: Api, page: Page
) -> None:
    environment.setattr("solocron.web.connections._SPREAD_MS", (300, 300))
    await start(page, api.port, {"1": 0}, **ALL, retryMs=[50_000, 50_000])
    await watched(api, "1")
    connections = api.cron.parts.connections
    await connections.drain()
    connections.accept()
    await turn(api, "1")
    await shows(page, "heard", [["1", 1, None]], within_s=5)
    assert await states(page) == ["connecting", "open", "waiting", "connecting", "open"]


async def test_a_server_that_is_half_open_is_left(api: Api, page: Page) -> None:
    async with Proxy(api.port) as proxy:
        await start(page, proxy.port, {"1": 0}, **ALL, heartbeatMs=400)
        await watched(api, "1")
        socket = its_socket(api)
        await asyncio.sleep(1.5)
        assert its_socket(api) is socket  # it was asked, and answered
        proxy.swallow("requests", "replies")
        await shows(page, "states.at(-1)[0] !== 'open'", True)
        await proxy.mend()
        await turn(api, "1")
        await shows(page, "heard", [["1", 1, None]])


async def test_a_fault_of_the_users_loses_nothing(api: Api) -> None:
    with pytest.raises(AssertionError, match="mine"):  # it is reported
        async with browser_page() as page:
            await start(page, api.port, {"1": 0}, **ALL)
            await page.evaluate("""() => {
                client.options.onEvent = (event) => { heard.push(event.seq); throw Error("mine"); };
            }""")
            await turn(api, "1")
            await close(api, "1")
            await shows(page, "heard", [1, 2])
            assert await states(page) == ["connecting", "open"]


async def test_the_readmes_snippet_works(api: Api, page: Page) -> None:
    (snippet,) = re.findall(r"^```js\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    said: list[str] = []
    page.on("console", lambda each: said.append(each.text))
    assert (await api.call("PUT", "/api/v1/stores/44", STORE, auth=token()))[0] == 201
    await page.route("**/readme.js", lambda route: route.fulfill(
        body=snippet, content_type="text/javascript"
    ))  # fmt: skip
    await page.route("**/token", lambda route: route.fulfill(body=token()))
    await page.goto(f"http://127.0.0.1:{api.port}/static/demo.html")
    await page.evaluate("() => import('/readme.js')")
    await watched(api, "44")
    await turn(api, "44")

    async def said_so() -> bool:
        return any(each.startswith("store.opened 44 1 {") for each in said)

    await until(said_so)
    assert [each.strip() for each in said[:2]] == ["connecting", "open"]


# -- the page ----------------------------------------------------------------------------------


async def test_the_page_shows_markup_as_text(api: Api, page: Page) -> None:
    name = "<img src=x onerror=alert(1)><b>bold</b>"
    body = {**STORE, "name": name}
    assert (await api.call("PUT", "/api/v1/stores/1", body, auth=token()))[0] == 200
    refused: list[str] = []
    page.on("console", lambda each: refused.append(each.text))
    await page.goto(f"http://127.0.0.1:{api.port}/static/demo.html")
    await page.fill("#token", token())
    await page.fill("#stores", " 1:0, nowhere")
    await page.click("text=Watch")
    await turn(api, "1")
    await shows(page, "document.getElementById('state').value", "open")
    await shows(page, "document.querySelectorAll('#events li').length", 2)
    lines = await page.locator("#events li").all_text_contents()
    assert "unknown-store: nowhere" in lines
    assert any(each.endswith(f" 1:1 store.opened {name}") for each in lines)
    assert await page.locator("#events img, #events b").count() == 0
    await page.click("text=Stop")
    await shows(page, "document.getElementById('state').value", "closed")
    await page.fill("#token", "wrong")
    await page.click("text=Watch")
    await shows(page, "document.getElementById('state').value.slice(0, 12)", "closed (4401")
    assert refused == []  # by the page's policy, or anything else
    await page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=1>')")
    await shows(page, "1", 1)
    assert any("Content Security Policy" in each for each in refused)


# -- the files ---------------------------------------------------------------------------------


async def get(api: Api, path: str, **headers: str) -> tuple[int, Any, bytes]:
    url = f"http://127.0.0.1:{api.port}{path}"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


@pytest.mark.parametrize(("name", "content_type"), TYPES.items())
async def test_files_are_served_to_all_and_kept_by_their_etag(
    api: Api, name: str, content_type: str
) -> None:
    status, headers, body = await get(api, f"/static/{name}")
    assert (status, headers["Content-Type"]) == (200, f"{content_type}; charset=utf-8")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-cache"
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert len(body) > 100 and b"http://" not in body and b"https://" not in body
    etag = headers["ETag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        status, headers, body = await get(api, f"/static/{name}", **{"If-None-Match": known})
        assert (status, headers["ETag"], body) == (304, etag, b"")
    assert (await get(api, f"/static/{name}", **{"If-None-Match": '"other"'}))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static", "/static/", "/static/static.py", "/static/..", "/static/../server.py",
        "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static/demo.html/",
        "/static/demo.html/../../server.py", "/static//demo.html", "/static/demo.html%00",
        "/static/DEMO.HTML", "/static/..\\server.py", "/static/%252e%252e/server.py",
    ],
)  # fmt: skip
async def test_nothing_else_is(api: Api, path: str) -> None:
    client = await RawClient.connect(api.port, path=path)
    assert client.head.split()[1] in ("400", "404"), client.head
    client.close()


async def test_a_page_of_an_allowed_origin_may_load_the_client(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("SOLOCRON_ORIGINS", "https://shop.example")
    async with with_shops() as api:
        for origin, allowed in (
            ("https://shop.example", "https://shop.example"), ("https://other.example", None),
        ):  # fmt: skip
            _, headers, _ = await get(api, "/static/solocron.js", Origin=origin)
            assert headers.get("Access-Control-Allow-Origin") == allowed
            assert headers["Vary"] == "Origin"
