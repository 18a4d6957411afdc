"""The hub: each client gets each notification of its stores once and in order, come what may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete, event, text

from conftest import RedisServer
from peers import Peer
from servers import Commit, Server, pair, with_stores
from solocron.notifications import hub as hub_module
from solocron.notifications.event import cloud_event
from solocron.storage.engine import POOL_SIZE, POOL_TIMEOUT_S, Database
from solocron.storage.tables import notifications
from workers import table_locked, until


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with with_stores(database_url, "a", "b") as database:
        yield database


@pytest.fixture
def commit(database: Database) -> Commit:
    return Commit(database)


@pytest.fixture
async def one(database: Database, redis_server: RedisServer) -> AsyncIterator[Server]:
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        yield server


@pytest.fixture
async def other(database: Database, redis_server: RedisServer) -> AsyncIterator[Server]:
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        yield server


async def test_a_notification_reaches_the_watchers_of_its_store_on_every_server(
    one: Server, other: Server, commit: Commit
) -> None:
    here, there, elsewhere = Peer(), Peer(), Peer()
    await one.hub.subscribe(here.client, {"a": None})
    await other.hub.subscribe(there.client, {"a": None, "b": None})
    await other.hub.subscribe(elsewhere.client, {"b": None})
    one.relay.publish(await commit("a", 3))
    await here.has("a", [1, 2, 3])
    await there.has("a", [1, 2, 3])
    assert not elsewhere.heard.events


async def test_repeats_are_dropped_and_a_gap_is_filled_from_the_table(
    one: Server, commit: Commit
) -> None:
    peer = Peer()
    await one.hub.subscribe(peer.client, {"a": None})
    fresh = await commit("a", 5)
    for index in (0, 0, 3, 1, 0, 4, 4):  # repeated, reordered, and the third one lost
        one.hub.deliver("a", fresh[index].seq, cloud_event(fresh[index]))
    await peer.has("a", [1, 2, 3, 4, 5])


async def test_a_resume_gets_what_it_missed_then_what_is_new(one: Server, commit: Commit) -> None:
    await commit("a", 4)
    peer = Peer()
    await one.hub.subscribe(peer.client, {"a": 2, "b": 0})
    await peer.has("a", [3, 4])
    assert peer.heard.answers == [
        {"type": "subscribed", "stores": {"a": {"seq": 4, "recovered": True},
                                          "b": {"seq": 0, "recovered": True}}}
    ]  # fmt: skip
    one.relay.publish(await commit("a"))
    await peer.has("a", [3, 4, 5])


async def test_many_who_come_back_at_once_are_read_for_together(
    one: Server, commit: Commit, database: Database
) -> None:
    await commit("a", 12)
    await commit("b", 3)
    peers = [Peer() for _ in range(300)]
    counted: list[str] = []
    event.listen(
        database._engine.sync_engine, "before_cursor_execute",
        lambda connection, cursor, statement, *rest: counted.append(statement),
    )  # fmt: skip
    await asyncio.gather(
        *(one.hub.subscribe(each.client, {"a": n % 14, "b": 2}) for n, each in enumerate(peers))
    )
    for n, each in enumerate(peers):
        await each.has("a", list(range(n % 14 + 1, 13)))
        await each.has("b", [3])
    asked = [each for each in counted if "stores" in each or "notifications" in each]
    assert len(asked) < len(peers) / 4, len(asked)


async def test_only_new_ones_means_only_new_ones(one: Server, commit: Commit) -> None:
    await commit("a", 4)
    peer = Peer()
    await one.hub.subscribe(peer.client, {"a": None})
    one.relay.publish(await commit("a"))
    await peer.has("a", [5])


@pytest.mark.parametrize(("last", "then"), [(1, [3, 4]), (9, []), (2, [3, 4])])
async def test_a_resume_beyond_the_history_says_so(
    one: Server, commit: Commit, database: Database, last: int, then: list[int]
) -> None:
    await commit("a", 4)
    async with database.begin() as connection:
        await connection.execute(delete(notifications).where(notifications.c.seq <= 2))
    peer = Peer()
    await one.hub.subscribe(peer.client, {"a": last})
    await asyncio.sleep(0)  # the turn in which the answer is written
    await peer.has("a", then)
    assert peer.heard.answers[0]["stores"]["a"] == {"seq": 4, "recovered": last == 2}


async def test_a_store_that_does_not_exist_is_named_and_not_kept(one: Server) -> None:
    peer = Peer()
    assert await one.hub.subscribe(peer.client, {"a": None, "nowhere": None}) == ["nowhere"]
    assert one.hub.watched_by(peer.client) == {"a"}
    await one.hub.remove(peer.client)
    assert one.hub.clients == 0
    assert not one.hub._topics and not one.fanout._subscriptions.watched


async def test_while_redis_is_down_other_servers_find_notifications_in_the_table(
    own_redis: RedisServer, database: Database, commit: Commit
) -> None:
    async with pair(database, own_redis.url) as (one, other):
        near, far = Peer(), Peer()
        await one.hub.subscribe(near.client, {"a": None})
        await other.hub.subscribe(far.client, {"a": None})
        own_redis.stop()
        await asyncio.gather(one.up(False), other.up(False))
        one.relay.publish(await commit("a", 2))
        await near.has("a", [1, 2])
        await far.has("a", [1, 2])
        late = Peer()  # one that comes while Redis is down
        await other.hub.subscribe(late.client, {"a": 1})
        own_redis.start()
        await asyncio.gather(one.up(), other.up())
        one.relay.publish(await commit("a"))
        for peer, seqs in ((near, [1, 2, 3]), (far, [1, 2, 3]), (late, [2, 3])):
            await peer.has("a", seqs)


async def test_what_was_sent_while_the_subscriber_was_cut_off_is_looked_up(
    one: Server, other: Server, commit: Commit, redis_server: RedisServer
) -> None:
    peer = Peer()
    await other.hub.subscribe(peer.client, {"a": None})
    redis_server.cli("client", "kill", "type", "pubsub")
    one.relay.publish(await commit("a", 2))
    await peer.has("a", [1, 2])


async def test_what_a_crash_left_unpublished_is_swept_up(one: Server, commit: Commit) -> None:
    peer = Peer()
    await one.hub.subscribe(peer.client, {"a": None})
    await commit("a", 2, age_ms=10_000)  # committed, and its server died before it published
    await peer.has("a", [1, 2])
    async with asyncio.timeout(10):
        while await one.outbox.unpublished(2**62, 10):
            await asyncio.sleep(0.01)


async def test_nothing_counts_as_published_unless_redis_took_it(
    database: Database, own_redis: RedisServer, commit: Commit
) -> None:
    own_redis.stop()
    server = Server(database, own_redis.url)
    server.relay.publish(await commit("a", 2))
    await server.relay.flush()
    assert len(await server.outbox.unpublished(2**62, 10)) == 2
    own_redis.start()
    server.relay.publish(await server.outbox.unpublished(2**62, 10))
    await server.relay.flush()
    assert await server.outbox.unpublished(2**62, 10) == []
    await server.fanout.close()


async def test_a_message_the_table_does_not_have_is_dropped_and_harms_nothing(
    one: Server, commit: Commit, redis_server: RedisServer
) -> None:
    peer = Peer()
    await one.hub.subscribe(peer.client, {"a": None})
    redis_server.cli("publish", "solocron:notifications:a", "7 {}")
    redis_server.cli("publish", "solocron:notifications:a", "not a message")
    redis_server.cli("publish", "solocron:notifications:a", "8" * 40 + " {}")
    fresh = await commit("a", 2)
    one.relay.publish(fresh)
    await peer.has("a", [1, 2])
    async with asyncio.timeout(5):
        while one.hub._topics["a"].held or one.hub._behind:
            await asyncio.sleep(0.01)
    assert peer.heard.seqs["a"] == [1, 2]


async def test_a_burst_is_one_write_per_client(one: Server, commit: Commit) -> None:
    peers = [Peer() for _ in range(3)]
    for peer in peers:
        await one.hub.subscribe(peer.client, {"a": None})
        await asyncio.sleep(0)
        peer.wire.writes.clear()
    for each in await commit("a", 50):
        one.hub.deliver("a", each.seq, cloud_event(each))
    await asyncio.sleep(0)
    assert [len(peer.wire.writes) for peer in peers] == [1, 1, 1]
    assert all(peer.heard.seqs["a"] == list(range(1, 51)) for peer in peers)


async def test_a_slow_client_is_cut_and_stalls_no_other(one: Server, commit: Commit) -> None:
    slow, quick = Peer(max_pending=5_000), Peer()
    slow.wire.stalled = True
    for peer in (slow, quick):
        await one.hub.subscribe(peer.client, {"a": None})
    one.relay.publish(await commit("a", 100))
    await quick.has("a", list(range(1, 101)))
    async with asyncio.timeout(5):
        await slow.slow.wait()
    assert slow.wire.get_write_buffer_size() <= 6_000
    again = Peer()  # it comes back, and resumes
    await one.hub.subscribe(again.client, {"a": (slow.heard.last or {"a": 0})["a"]})
    await again.has("a", list(range(slow.heard.last.get("a", 0) + 1, 101)))


async def test_clients_that_come_by_the_hundred_leave_jobs_their_connections(
    postgres_url: str, redis_server: RedisServer
) -> None:
    async with (
        with_stores(postgres_url, "a") as database,
        Server(database, redis_server.url).running() as server,
        asyncio.TaskGroup() as group,
    ):
        await server.up()
        async with table_locked(postgres_url):
            joins = [
                group.create_task(server.hub.subscribe(Peer().client, {"a": 0}))
                for _ in range(5 * POOL_SIZE)
            ]
            await until(lambda: waiting_for_locks(postgres_url))
            async with asyncio.timeout(POOL_TIMEOUT_S / 2), database.connect() as connection:
                assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
            assert not any(each.done() for each in joins)
    assert server.hub.clients == len(joins)


async def waiting_for_locks(url: str) -> int:
    database = Database(url)
    async with database.connect() as connection:
        query = text("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
        found = (await connection.execute(query)).scalar_one()
    await database.close()
    return int(found)


async def test_a_page_of_the_history_is_paced_though_it_is_more_than_may_wait_for_a_client(
    one: Server, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_PACE_BYTES", 10_000)
    await commit("a", 900)
    peer = Peer(max_pending=50_000)
    await one.hub.subscribe(peer.client, {"a": 0})
    await peer.has("a", list(range(1, 901)))
    assert not peer.client.is_closed


@pytest.mark.parametrize("stalled", [True, False])
async def test_who_is_gone_is_read_no_more_of_the_history_for(
    one: Server, commit: Commit, monkeypatch: pytest.MonkeyPatch, stalled: bool
) -> None:
    await commit("a", 5_000)
    peer, since, pages = Peer(), one.outbox.since, 0

    async def counted(*args: Any) -> Any:
        nonlocal pages
        pages += 1
        peer.wire.closing = pages == 3  # the connection is lost
        return await since(*args)

    peer.wire.stalled = stalled
    monkeypatch.setattr(hub_module, "_DRAIN_S", 0.1 if stalled else 30)
    monkeypatch.setattr(one.outbox, "since", counted)
    async with asyncio.timeout(10):
        await one.hub.subscribe(peer.client, {"a": 0})
    assert pages == 3
    await one.hub.remove(peer.client)


async def test_no_notification_is_lost_between_subscribing_and_reading_the_table(
    one: Server, other: Server, commit: Commit
) -> None:
    """Clients join while notifications are being committed: each sees a suffix without a gap."""
    peers: list[Peer] = []

    async def join() -> None:
        for _ in range(30):
            peer = Peer()
            await other.hub.subscribe(peer.client, {"a": None})
            peers.append(peer)

    async def write() -> None:
        for _ in range(60):
            one.relay.publish(await commit("a"))

    await asyncio.gather(join(), write())
    for peer in peers:
        start = peer.heard.answers[0]["stores"]["a"]["seq"]
        await peer.has("a", list(range(start + 1, 61)))
