"""The demo page in a real browser, while the server behind its address is killed and replaced."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict

from playwright.async_api import Page

from browsing import browser_page, shows
from conftest import RedisServer, free_port
from shops import change_stores, open_shops
from workers import Worker, prepare, until

CHANGES = 120


async def shown(page: Page) -> list[str]:
    """`<store>:<seq>` of each line, oldest first."""
    lines = await page.locator("#events li").all_text_contents()
    return [line.split()[1] for line in reversed(lines)]


async def test_a_page_shows_each_notification_once_though_its_server_is_killed(
    own_redis: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)
    shops, port = await open_shops(database, 5), free_port()
    options = {"redis": own_redis.url, "database": database_url}
    doomed, other = await asyncio.gather(
        Worker.start(port=port, **options), Worker.start(**options)
    )
    workers = [doomed, other]

    async def has(count: int) -> None:
        async def enough() -> bool:
            return len(await shown(page)) >= count

        await until(enough, 60)

    try:
        async with browser_page() as page:
            await page.goto(f"http://127.0.0.1:{port}/static/demo.html")
            await page.fill("#stores", ",".join(f"{each}:0" for each in shops))
            await page.click("text=Watch")
            await shows(page, "document.getElementById('state').value", "open")
            changing = asyncio.create_task(change_stores(other.port, shops, CHANGES))
            await has(CHANGES // 4)
            doomed.signal(signal.SIGKILL)
            await doomed.process.wait()
            heard = len(await shown(page))
            await shows(page, "document.getElementById('state').value", "waiting (1006)")
            workers.append(await Worker.start(port=port, **options))
            await changing
            await has(CHANGES)
            await shows(page, "document.getElementById('state').value", "open")
            await asyncio.sleep(1.0)  # for what may come too often
            ids = await shown(page)
    finally:
        await asyncio.gather(*(each.stop() for each in workers))
        await database.close()
    assert heard < CHANGES == len(ids)
    seqs: defaultdict[str, list[int]] = defaultdict(list)
    for each in ids:
        shop, _, seq = each.rpartition(":")
        seqs[shop].append(int(seq))
    for found in seqs.values():
        assert found == list(range(1, len(found) + 1))
