"""The client's server is killed in mid-stream, or leaves, and the client resumes on another one."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict

import pytest

from conftest import RedisServer
from shops import change_stores, open_shops
from solocron.client import Client
from workers import Worker, prepare

CHANGES = 160


@pytest.mark.parametrize("everything", [False, True], ids=["stores", "all"])
async def test_a_client_whose_servers_are_killed_has_each_once_and_in_order(
    own_redis: RedisServer, database_url: str, everything: bool
) -> None:
    database = await prepare(database_url)
    shops = await open_shops(database, 5)
    workers = await asyncio.gather(
        *(Worker.start(redis=own_redis.url, database=database_url) for _ in range(3))
    )
    urls = [f"ws://127.0.0.1:{each.port}/ws" for each in workers]
    seqs: defaultdict[str, list[int]] = defaultdict(list)
    heard = 0
    changing = asyncio.create_task(change_stores(workers[-1].port, shops, CHANGES))
    try:
        stores = {"*": 0} if everything else dict.fromkeys(shops, 0)
        async with Client(urls, stores, retry_s=(0.05, 0.5)) as events, asyncio.timeout(90):
            async for event in events:
                seqs[event.store_id].append(event.seq)
                heard += 1
                if heard == CHANGES // 4:
                    workers[0].signal(signal.SIGKILL)
                elif heard == CHANGES // 2:
                    workers[1].signal(signal.SIGTERM)
                elif heard == CHANGES:
                    break
            await changing
            with pytest.raises(TimeoutError):  # nothing more comes
                async with asyncio.timeout(1.0):
                    await anext(events)
            kept = events.positions
    finally:
        changing.cancel()
        await asyncio.gather(*(each.stop() for each in workers))
        await database.close()
    for each in seqs.values():
        assert each == list(range(1, len(each) + 1))
    last = {"*": CHANGES} if everything else {each: len(seqs[each]) for each in shops}
    assert kept == last
