"""A real browser for the tests: the system's Chromium, and pages that use the browser's client."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

from workers import until

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_START = """async ([stores, options]) => {
    const { Client } = await import("/static/solocron.js");
    Object.assign(window, { heard: [], gaps: [], refused: [], states: [], used: 0 });
    const token = () => options.tokens[Math.min(window.used++, options.tokens.length - 1)];
    window.client = new Client("/ws", stores, {
        ...options,
        token: options.token ?? (options.tokens ? token : undefined),
        onEvent: (event) => heard.push([event.storeId, event.seq, event.feed]),
        onGap: (gap) => gaps.push(gap),
        onRefused: (code, stores) => refused.push([code, ...stores]),
        onState: (state, reason) => states.push([state, reason]),
    });
}"""


def chromium() -> str | None:
    """The path of the system's, if there is one."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@asynccontextmanager
async def browser_page(**options: Any) -> AsyncIterator[Page]:
    """An empty page, with Playwright's options; at the end nothing may have been thrown in it."""
    path = chromium()
    if path is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        faults: list[str] = []
        page = await browser.new_page(**options)
        page.on("pageerror", lambda error: faults.append(str(error)))
        yield page
        await browser.close()
    assert faults == [], faults


async def start(page: Page, port: int, stores: Mapping[str, int | None], **options: Any) -> None:
    """Have a page of the server on `port` watch these stores; `tokens` are given one by one."""
    await page.goto(f"http://127.0.0.1:{port}/static/demo.html")
    defaults = {"retryMs": [20, 100]}
    await page.evaluate(_START, [dict(stores), {**defaults, **options}])


async def shows(page: Page, script: str, value: Any, within_s: float = 15) -> None:
    """Wait until the script has this value in the page."""
    found: Any = None

    async def has_it() -> bool:
        nonlocal found
        found = await page.evaluate(script)
        return bool(found == value)

    try:
        await until(has_it, within_s)
    except TimeoutError:
        assert found == value, await page.evaluate("window.states ?? null")
