"""An event stream's server is killed, and its client resumes on another one."""

from __future__ import annotations

import asyncio
import signal

from clients import Listener
from conftest import RedisServer
from shops import change_stores, open_shops
from streams import StreamClient
from workers import Worker, prepare

CHANGES = 160


async def test_a_client_whose_server_is_killed_has_each_once_and_in_order(
    own_redis: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)
    shops = await open_shops(database, 5)
    workers = await asyncio.gather(
        *(Worker.start(redis=own_redis.url, database=database_url) for _ in range(3))
    )
    listener, query, whole = Listener(), f"?stores={','.join(shops)}", []
    changing = asyncio.create_task(change_stores(workers[-1].port, shops, CHANGES))
    try:
        last_id = ",".join(f"{each}:0" for each in shops)
        for worker, until in zip(workers, (CHANGES // 4, CHANGES // 2, CHANGES), strict=True):
            client = await StreamClient.connect(worker.port, query, f"Last-Event-ID: {last_id}")
            first = await client.event()
            assert all(each["recovered"] for each in first.json["stores"].values())
            while len(listener.events) < until:
                listener.hear((await client.event()).data)
            if worker is not workers[-1]:
                worker.signal(signal.SIGKILL)  # what is on its way still comes, and counts
                for event in await client.rest():
                    if event.data:
                        listener.hear(event.data)
                whole.append(client.is_whole)
            last_id = client.last_id
        await changing
        assert await client.block(1) is None
    except TimeoutError:
        pass  # nothing more came
    finally:
        changing.cancel()
        client.close()
        await asyncio.gather(*(each.stop() for each in workers))
        await database.close()
    assert whole == [False, False]
    assert sum(map(len, listener.seqs.values())) == CHANGES
    for seqs in listener.seqs.values():
        assert seqs == list(range(1, len(seqs) + 1))
