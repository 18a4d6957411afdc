"""A WebSocket client is cut off while 10,000 stores close, and comes back to another worker."""

from __future__ import annotations

import asyncio

import pytest

from clients import Listener, connected, subscribe
from conftest import RedisServer
from proxy import Proxy
from shops import open_shops
from solocron import LockManager
from workers import Worker, prepare

SHOPS = 10_000
CLOSING = "cron:store-auto-close"


@pytest.mark.timeout(180)
async def test_a_client_cut_off_in_mid_close_has_each_notification_once(
    own_redis: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)
    shops = await open_shops(database, SHOPS)
    locks = LockManager(own_redis.url)
    await locks.pause(CLOSING)  # until all is subscribed
    one, other = await asyncio.gather(
        *(
            Worker.start(
                redis=own_redis.url, database=database_url, batch=100,
                store_auto_close_schedule="*/10 * * * * *",
            )
            for _ in range(2)
        )
    )  # fmt: skip
    listener = Listener()
    try:
        async with Proxy(one.port) as proxy, connected(proxy.port) as ws:
            answer = await subscribe(ws, dict.fromkeys(shops))
            assert all(each == {"seq": 0, "recovered": True} for each in answer.values())
            await locks.resume(CLOSING)
            await listener.listen(ws, until=SHOPS // 20)
            await proxy.cut()
        assert len(listener.events) < SHOPS
        last = dict.fromkeys(shops, 0) | listener.last
        async with connected(other.port) as ws:
            answer = await subscribe(ws, last)
            assert all(each["recovered"] for each in answer.values())
            async with asyncio.timeout(120):
                await listener.listen(ws, until=SHOPS)
            with pytest.raises(TimeoutError):  # and nothing more comes
                async with asyncio.timeout(1.0):
                    await listener.listen(ws)
    finally:
        await asyncio.gather(one.stop(), other.stop(), locks.link.close())
        await database.close()
    listener.assert_each_once(shops)
    assert {event["type"] for event in listener.events} == {"store.closed"}
