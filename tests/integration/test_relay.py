"""The relay: order, crashes between commit and mark, one sweeper at a time, and bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import insert

from conftest import RedisServer
from peers import Peer
from plans import statements
from servers import Commit, Server, with_stores
from solocron.errors import StorageUnavailable
from solocron.notifications import relay as relay_module
from solocron.storage import outbox as rows
from solocron.storage.engine import Database
from solocron.storage.outbox import Notification, Outbox
from solocron.storage.tables import store_states

LATER = 2**62


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with with_stores(database_url, "a") as database:
        yield database


@pytest.fixture
def commit(database: Database) -> Commit:
    return Commit(database)


async def backlog(database: Database, count: int) -> None:
    """Old notifications of store a that nobody published."""
    async with database.begin() as connection:
        await connection.execute(insert(store_states).values(store_id="a", notification_seq=count))
        for start in range(1, count + 1, 1000):
            some = range(start, min(start + 1000, count + 1))
            await rows.append(
                connection, [Notification("a", seq, "store.closed", {}, 0) for seq in some]
            )


async def test_flushes_at_the_same_time_publish_in_order(
    database: Database, redis_server: RedisServer, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_BATCH", 3)
    server = Server(database, redis_server.url)
    publish, sent = server.fanout.publish, []

    async def slow_at_first(messages: Sequence[tuple[str, int, bytes]]) -> bool:
        await asyncio.sleep(0.02 if not sent else 0)
        sent.extend(seq for _, seq, _ in messages)
        return await publish(messages)

    monkeypatch.setattr(server.fanout, "publish", slow_at_first)
    server.relay.publish(await commit("a", 10))
    await asyncio.gather(*(server.relay.flush() for _ in range(4)))
    assert sent == list(range(1, 11))
    assert await server.outbox.unpublished(LATER, 20) == []
    await server.fanout.close()


async def test_a_flush_returns_when_all_before_it_is_out(
    database: Database, redis_server: RedisServer, commit: Commit
) -> None:
    server = Server(database, redis_server.url)
    server.relay.publish(await commit("a", 10))
    first = asyncio.create_task(server.relay.flush())
    await asyncio.sleep(0)
    await server.relay.flush()
    assert await server.outbox.unpublished(LATER, 20) == []
    await first
    await server.fanout.close()


async def test_published_but_not_marked_is_published_again_and_heard_once(
    database: Database, redis_server: RedisServer, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_UNPUBLISHED_AFTER_MS", 0)
    async with (
        Server(database, redis_server.url).running() as one,
        Server(database, redis_server.url).running() as other,
    ):
        await asyncio.gather(one.up(), other.up())
        peer = Peer()
        await other.hub.subscribe(peer.client, {"a": None})
        mark, faults = one.outbox.mark_published, [1, 2]

        async def failing(rows: Sequence[Notification], now_ms: int) -> None:
            if faults:
                faults.pop()
                raise StorageUnavailable("away")
            await mark(rows, now_ms)

        for each in (one, other):
            monkeypatch.setattr(each.outbox, "mark_published", failing)
        one.relay.publish(await commit("a", 5))
        async with asyncio.timeout(10):
            while await one.outbox.unpublished(LATER, 10):
                await asyncio.sleep(0.02)
        await peer.has("a", [1, 2, 3, 4, 5])
        assert not faults


async def test_a_big_backlog_is_swept_in_bounded_batches_by_one_server(
    database: Database, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backlog(database, 20_000)
    batches: list[int] = []
    async with (
        Server(database, redis_server.url).running() as one,
        Server(database, redis_server.url).running() as other,
    ):
        await asyncio.gather(one.up(), other.up())
        for server in (one, other):

            async def counted(messages: Any, publish: Any = server.fanout.publish) -> bool:
                batches.append(len(messages))
                return bool(await publish(messages))

            async def slow(*args: Any, read: Any = server.outbox.unpublished) -> Any:
                await asyncio.sleep(0.05)  # so the sweep takes many of its periods
                return await read(*args)

            monkeypatch.setattr(server.fanout, "publish", counted)
            monkeypatch.setattr(server.outbox, "unpublished", slow)
        async with asyncio.timeout(60):
            while await Outbox(database).unpublished(LATER, 1):
                await asyncio.sleep(0.05)
    assert max(batches) <= 500
    assert sum(batches) == 20_000  # two sweepers would have published some of it twice


async def test_marking_reads_no_more_of_a_big_table_than_it_marks(database: Database) -> None:
    """A mark that reads the whole table holds SQLite's write lock for seconds."""
    outbox = Outbox(database)
    await backlog(database, 1_000)
    some = await outbox.unpublished(LATER, 500)
    with statements(database) as given:
        await outbox.mark_published(some, 1)
    for plan in await given.plans("UPDATE notifications"):
        assert "(store_id=? AND seq=?)" in plan or "notifications_pkey" in plan
    for plan in await given.plans("SELECT notifications"):
        assert "notifications_unnumbered" in plan and "SCAN notifications" not in plan
    assert [each.seq for each in await outbox.unpublished(LATER, 1_000)] == list(range(501, 1_001))


async def test_an_idle_sweep_writes_nothing(
    database: Database, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(database, redis_server.url)

    async def mark(*args: Any) -> None:
        raise AssertionError("a write without a row")

    monkeypatch.setattr(server.outbox, "mark_published", mark)
    await server.relay._sweep()
    await server.fanout.close()


async def test_a_frozen_redis_holds_up_neither_our_own_clients_nor_the_drain(
    database: Database, own_redis: RedisServer, commit: Commit
) -> None:
    async with Server(database, own_redis.url).running() as server:
        await server.up()
        peer = Peer()
        await server.hub.subscribe(peer.client, {"a": None})
        own_redis.pause()
        try:
            for _ in range(4):
                server.relay.publish(await commit("a", 600))
            await asyncio.sleep(0)
            assert peer.heard.seqs["a"] == list(range(1, 2401))
            async with asyncio.timeout(1.5):  # one deadline, not one for each batch
                await server.relay.flush()
        finally:
            own_redis.resume()


async def test_the_queue_is_bounded_and_the_rest_is_left_to_the_sweep(
    database: Database, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_MAX_QUEUED", 10)
    server = Server(database, redis_server.url)
    for first in range(1, 101, 5):
        fresh = [Notification("a", first + n, "store.closed", {}, 0) for n in range(5)]
        server.relay.publish(fresh)
    assert len(server.relay._queue) <= 15
