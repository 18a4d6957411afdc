"""The dashboard of a real service in a real Chromium: what it shows, does, and keeps from doing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from playwright.async_api import Page
from test_metrics import World, calm, job, world
from test_operations import HOLD_MS, Body, basic, ended, fails, get
from test_web import put, token

from browsing import browser_page, shows
from conftest import RedisServer
from proxy import Proxy
from solocron.locks.keys import fleet_key
from solocron.locks.manager import LockManager
from solocron.settings import load
from solocron.storage.alerts import Alert, AlertTable

__all__ = ["calm"]

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
SAID = "document.getElementById('said').textContent"
FOCUSED = "document.activeElement.id"
_CHECKS = (Path(__file__).parent / "dashboard_checks.js").read_text()


@pytest.fixture
def body() -> Body:
    return Body()


@pytest.fixture
async def here(
    calm: pytest.MonkeyPatch, own_redis: RedisServer, body: Body
) -> AsyncIterator[World]:
    """A service with the job `slow`, which waits, and `broken`, which has failed."""
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("SOLOCRON_REDIS_DEADLINE", "0.3")
    calm.setenv("SOLOCRON_LEASE", "30")
    async with world(job("slow", body), job("broken", fails, attempts=1)) as here:
        await here.run("broken")
        await here.cron.parts.board.publish()
        yield here
        body.end.set()


@asynccontextmanager
async def dashboard(
    here: World, auth: str | None = None, port: int | None = None, **options: Any
) -> AsyncIterator[Page]:
    """The page, opened with a token as the password; nothing that it does breaks its policy."""
    password = {"username": "me", "password": auth or token(sub="on call")}
    async with browser_page(http_credentials=password, **{**DESK, **options}) as page:
        words: list[str] = []
        page.on("console", lambda each: words.append(each.text))
        await page.goto(f"http://127.0.0.1:{port or here.api.port}/dashboard")
        yield page
    assert [each for each in words if not each.startswith("Failed to load resource")] == []


async def confirm(page: Page, button: str) -> None:
    await page.click(f"#{button}")
    await page.click("#yes")


async def texts(page: Page, selector: str) -> str:
    return await page.inner_text(selector)


# -- what it does ------------------------------------------------------------------------------


async def test_a_job_is_run_on_click_once_that_is_confirmed(here: World, body: Body) -> None:
    async with dashboard(here) as page:
        await page.click("#run-slow")
        assert await page.inner_text("#question") == "Run slow now?"
        assert await page.evaluate("document.activeElement.textContent") == "Cancel"
        await page.click("text=Cancel")
        await shows(page, "document.getElementById('confirm').open", False)
        assert (body.runs, (await get(here, "jobs/slow"))["runs"]) == (0, [])
        await confirm(page, "run-slow")
        await shows(page, SAID, "slow runs.")
        await shows(page, "document.querySelector('#job-slow .running') !== null", True)
        assert "running" in await texts(page, "#job-slow")
        await confirm(page, "run-slow")
        await shows(page, f"{SAID}.slice(0, 31)", "Not done: job 'slow' is running")
        body.end.set()
        await ended(here, "slow")
        await shows(page, "document.querySelector('#job-slow .succeeded') !== null", True)
        assert body.runs == 1


async def test_a_pause_shows_and_ends(here: World) -> None:
    async with dashboard(here) as page:
        await page.click("#pause-slow")
        await page.select_option("#seconds", "900")
        await page.click("#yes")
        await page.wait_for_selector("#resume-slow")
        assert "paused by on call, until" in await texts(page, "#job-slow")
        slow = await get(here, "jobs/slow")
        left_ms = slow["paused_until"] - here.cron.parts.clock.now_ms()
        assert slow["paused"] and 800_000 < left_ms < 900_001
        await confirm(page, "resume-slow")
        await page.wait_for_selector("#pause-slow")
        assert (await get(here, "jobs/slow"))["paused"] is False


async def test_a_locks_time_runs_down_and_the_lock_is_deleted(here: World) -> None:
    seconds = """(() => { const [m, s] = document.querySelector("#held time").textContent
        .split(":"); return 60 * m + Number(s); })()"""
    async with LockManager(load().redis) as other:
        assert await other.acquire_lock("cron:slow", HOLD_MS)
        async with dashboard(here) as page:
            first = await page.evaluate(seconds)
            assert 50 < first <= 60
            await shows(page, f"{seconds} <= {first - 2}", True)
            left = await page.evaluate(seconds)
            ttl_ms = (await get(here, "locks"))["locks"][0]["ttl_ms"]
            assert abs(left - ttl_ms / 1000) <= 2
            await page.click("[data-act=unlock]")
            assert await page.inner_text("#question") == "Delete the lock cron:slow?"
            await page.click("#yes")
            await shows(page, "document.getElementById('held').innerText.trim()", "None.")
        assert not await other.is_locked("cron:slow")


async def test_a_silent_worker_is_not_said_to_reach_anything_and_a_warning_is_no_alarm(
    here: World, own_redis: RedisServer
) -> None:
    mine = here.cron.parts.board.presence()
    assert mine is not None
    told = {
        **asdict(mine),
        "seen_ms": mine.seen_ms - 23 * 3_600_000,
        "redis": "up",
        "database": "up",
    }
    key = fleet_key(load().environment, "workers")
    own_redis.cli("HSET", key, "gone:1:abc", json.dumps(told))
    warning = Alert("dead-letters", "", 1, "1 was given up", "warning", 1)
    assert await AlertTable(here.cron.parts.database).take(warning, 60_000)
    row = "[...document.querySelectorAll('#fleet tr')].find(e => e.innerText.includes('gone:1'))"
    async with dashboard(here) as page:
        cells = f"[...{row}.querySelectorAll('[data-label=Redis],[data-label=Database]')]"
        assert await page.evaluate(f"{cells}.map(e => e.innerText + e.className)") == ["-quiet"] * 2
        colour = "getComputedStyle(document.querySelector('.alert{}')).borderLeftColor"
        await shows(page, "document.querySelectorAll('.alert.warns').length", 1)
        assert await page.evaluate(f"{colour.format('.warns')} != {colour.format(':not(.warns)')}")


async def test_notifications_come_live_and_as_text(here: World) -> None:
    markup = "<img src=x onerror=alert(1)>"
    async with dashboard(here) as page:
        await shows(page, "document.getElementById('connection').value", "open")
        await put(here.api, "1")
        store = {"name": markup, "timezone": "UTC", "hours": "24/7"}
        await here.api.call("PUT", "/api/v1/stores/1", store, auth=token())
        await here.api.call("POST", "/api/v1/stores/1/open", auth=token())
        await shows(page, "document.querySelectorAll('#events li').length", 1)
        assert (await texts(page, "#events li")).endswith(f"1 store.opened {markup}")
        assert await page.locator("#events img").count() == 0
        await page.uncheck("#hearing")
        await here.api.call("POST", "/api/v1/stores/1/close", auth=token())
        await page.check("#hearing")
        await here.api.call("POST", "/api/v1/stores/1/open", auth=token())
        await shows(page, "document.querySelectorAll('#events li').length", 2)


class NoPasswordForWebSockets(Proxy):
    """Between the server and a browser as Safari is: it sends no password when it opens a
    WebSocket."""

    opened = 0

    async def _pass(
        self, direction: str, data: bytes, out: asyncio.StreamWriter, lost: set[str]
    ) -> None:
        if direction == "requests" and b"upgrade: websocket" in data.lower():
            data, found = re.subn(rb"(?i)\r\nauthorization: [^\r]*", b"", data)
            self.opened += found
        await super()._pass(direction, data, out, lost)


async def test_notifications_come_where_a_browser_sends_no_password_for_them(here: World) -> None:
    async with (
        NoPasswordForWebSockets(here.api.port) as proxy,
        dashboard(here, port=proxy.port) as page,
    ):
        await shows(page, "document.getElementById('connection').value", "open")
        await put(here.api, "1")
        await here.api.call("POST", "/api/v1/stores/1/open", auth=token())
        await shows(page, "document.querySelectorAll('#events li').length", 1)
        await proxy.cut()
        await here.api.call("POST", "/api/v1/stores/1/close", auth=token())
        await shows(page, "document.querySelectorAll('#events li').length", 2)
    assert proxy.opened >= 2


async def test_the_pages_own_token_listens_for_a_minute_and_is_for_this_page_only(
    here: World,
) -> None:
    path, own = "/dashboard/token", f"http://127.0.0.1:{here.api.port}"
    password = basic(token(sub="on call"))
    async with ClientSession(own) as http:

        async def asked(origin: str | None, auth: str = password) -> tuple[int, dict[str, Any]]:
            headers = {"Authorization": auth, **({"Origin": origin} if origin else {})}
            async with http.post(path, headers=headers) as answer:
                return answer.status, await answer.json()

        status, told = await asked(own)
        assert status == 200
        principal = here.cron.parts.authenticator.authenticate(told["token"])
        left_s = here.cron.parts.authenticator.seconds_left(principal)
        assert (principal.scopes, principal.subject) == (("notifications:read",), "on call")
        assert left_s is not None and left_s <= 65 and principal.stores is None
        for origin in (None, "https://evil.example"):
            assert (await asked(origin))[0] == 403
        for weak in (token(scope="jobs:run"), token(stores=["1"], scope="notifications:read")):
            assert (await asked(own, basic(weak)))[0] == 403
        assert (await asked(own, "Basic eDp5"))[0] == 401


async def test_locks_are_looked_up_once_for_all_who_look(
    here: World, own_redis: RedisServer
) -> None:
    own_redis.cli("CONFIG", "RESETSTAT")
    await asyncio.gather(*(here.api.call("GET", "/dashboard", auth=token()) for _ in range(5)))
    assert "cmdstat_scan:calls=1," in own_redis.cli("INFO", "commandstats")


async def test_the_page_has_no_token_and_its_script_keeps_none(here: World) -> None:
    secret = token(sub="on call")
    async with dashboard(here, secret) as page:
        await shows(page, "document.getElementById('connection').value", "open")
        assert secret not in await page.content()
        assert await page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
        signature = secret.rpartition(".")[2]
        resources = "performance.getEntriesByType('resource').map((each) => each.name).join()"
        assert signature not in await page.evaluate(resources)


async def test_what_a_token_is_not_for_is_not_offered(here: World) -> None:
    for scope, offered, listens in (
        ("metrics:read", set(), 0), ("jobs:run", {"run", "pause"}, 0),
        ("jobs:run notifications:read", {"run", "pause"}, 1), ("admin", {"run", "pause"}, 1),
    ):  # fmt: skip
        async with dashboard(here, token(scope=scope)) as page:
            acts = await page.eval_on_selector_all(
                "button[data-act]", "(all) => all.map((each) => each.dataset.act)"
            )
            assert (set(acts), await page.locator("#events").count()) == (offered, listens)
            assert await page.locator("thead .acts").count() == (scope == "admin")


async def test_keys_alone_are_enough(here: World, body: Body) -> None:
    async with dashboard(here) as page:
        await page.keyboard.press("Tab")
        assert await page.inner_text(":focus") == "Skip to the jobs"
        await page.keyboard.press("Enter")
        while await page.evaluate(FOCUSED) != "run-slow":
            await page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.evaluate(outline) == "solid"
        await page.keyboard.press("Enter")
        await page.keyboard.press("Escape")
        await shows(page, FOCUSED, "run-slow")
        assert body.runs == 0
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await shows(page, SAID, "slow runs.")
        await shows(page, "document.querySelector('#job-slow .running') !== null", True)
        await shows(page, FOCUSED, "run-slow")  # in the part that was made anew
        await page.keyboard.press("Tab")
        await page.keyboard.press("Space")
        await page.keyboard.press("Tab")
        assert await page.evaluate(FOCUSED) == "yes"
        await page.keyboard.press("Enter")
        await shows(page, FOCUSED, "run-slow")  # the button that was pressed is gone
        assert await page.locator("#resume-slow").count() == 1


# -- what it looks like ------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
async def test_it_is_to_be_read_by_everybody(
    here: World, body: Body, size: dict[str, Any], scheme: str
) -> None:
    """Names, labels, headings, landmarks, contrast, and no scrolling sideways."""
    async with dashboard(here, color_scheme=scheme, **size) as page:
        await shows(page, "document.getElementById('connection').value", "open")
        await page.click("#pause-slow")
        assert await page.evaluate(_CHECKS, "dialog") == []
        await page.click("text=Cancel")
        await confirm(page, "run-slow")
        await shows(page, "document.querySelector('#job-slow .running') !== null", True)
        assert await page.evaluate(_CHECKS, "body") == []
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        dark = "getComputedStyle(document.body).backgroundColor"
        assert (await page.evaluate(dark) == "rgb(20, 23, 26)") == (scheme == "dark")


async def test_the_checks_find_what_is_wrong(here: World) -> None:
    async with dashboard(here) as page:
        await page.evaluate("""() => {
            document.querySelector("#run-slow").removeAttribute("aria-label");
            document.querySelector("#run-slow").textContent = "";
            document.querySelector("#pause-slow").id = "main";
            document.querySelector("h3").outerHTML = "<h5>slow</h5>";
            document.getElementById("hearing").closest("label").replaceWith(
                document.getElementById("hearing"));
            const css = new CSSStyleSheet();
            css.replaceSync(".quiet { color: #999 }");
            document.adoptedStyleSheets = [css];
        }""")
        found = await page.evaluate(_CHECKS, "body")
    kinds = {each.split(":")[0] for each in found}
    assert kinds == {"no name", "id twice", "heading skips a level", "contrast"}


# -- degraded ----------------------------------------------------------------------------------


async def test_it_says_so_when_redis_or_its_server_is_away(
    here: World, own_redis: RedisServer
) -> None:
    async with dashboard(here) as page:
        away = page.get_by_text("Redis does not answer: locks").first
        await page.wait_for_selector("text=Alert job-failed")
        assert await away.count() == 0
        own_redis.stop()
        await away.wait_for()
        assert "ValueError: no stock" in await texts(page, "#job-broken")  # the ledger's
        assert await page.title() == "solocron: look here"
        await confirm(page, "pause-slow")
        await shows(page, SAID, "Not done: Redis does not answer; try again later")
        own_redis.start()
        await away.wait_for(state="detached")
        await page.route("**/dashboard", lambda route: route.abort())
        await shows(page, f"{SAID}.slice(0, 12)", "Not renewed:")
        await page.unroute("**/dashboard")
        await shows(page, SAID, "")


async def test_without_script_it_renews_itself_and_offers_nothing(here: World) -> None:
    async with dashboard(here, java_script_enabled=False) as page:
        assert await page.locator("button:visible").count() == 0
        assert await page.locator("#events:visible").count() == 0
        assert "ValueError: no stock" in await texts(page, "#job-broken")
        async with page.expect_navigation(timeout=10_000):
            pass


async def test_what_somebody_wrote_is_text_to_the_page(here: World, own_redis: RedisServer) -> None:
    own_redis.cli("SET", "cron:<b>x</b>", "<b>me</b>", "PX", str(HOLD_MS))
    async with dashboard(here) as page:
        assert "cron:<b>x</b>" in await texts(page, "#held")
        assert "<b>me</b>" in await texts(page, "#held")
        assert await page.locator("main b").count() == 0
