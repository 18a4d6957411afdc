"""The feed: all notifications in one line, gap-free, each store's in order, on any server."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from test_web import READER, STORE, Api, serving, token

from clients import Listener, connected, subscribe
from conftest import RedisServer
from peers import Peer
from plans import statements
from servers import Commit, Server, pair, with_stores
from solocron.storage.engine import Database
from solocron.storage.feed import EVERY, Feed
from solocron.storage.outbox import Outbox
from solocron.storage.tables import feed, notifications

STORES = ("a", "b", "c", "d")
LATER = 2**62


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with with_stores(database_url, *STORES) as database:
        yield database


@pytest.fixture
def commit(database: Database) -> Commit:
    return Commit(database)


async def line(database: Database) -> list[tuple[str, int]]:
    """(store, seq) of each in the order of the feed, after checking that it has no gap."""
    async with database.connect() as connection:
        query = select(notifications).order_by(notifications.c.feed)
        rows = (await connection.execute(query)).all()
        newest = (await connection.execute(select(feed.c.position))).scalar_one()
    assert [row.feed for row in rows] == list(range(1, len(rows) + 1))
    assert newest == len(rows)
    return [(row.store_id, row.seq) for row in rows]


def assert_in_order(places: list[tuple[str, int]], expected: dict[str, int]) -> None:
    """Each store's notifications, 1 to what is expected, each once and in order."""
    seqs: defaultdict[str, list[int]] = defaultdict(list)
    for store, seq in places:
        seqs[store].append(seq)
    assert seqs == {store: list(range(1, count + 1)) for store, count in expected.items()}


def heard(peer: Peer) -> list[int]:
    """The feed numbers that a peer heard, in the order it did."""
    return [int(each["feedsequence"]) for each in peer.heard.events]


async def hears(peer: Peer, numbers: list[int]) -> None:
    async with asyncio.timeout(20):
        while heard(peer) != numbers:
            await asyncio.sleep(0.005)


# -- numbers ---------------------------------------------------------------------------------


async def test_numbers_are_gap_free_and_in_order_of_each_store_however_many_write_and_number(
    database: Database,
) -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    writing = 4

    async def write(seed: int) -> None:
        nonlocal writing
        rng, commit = random.Random(seed), Commit(database)
        for _ in range(40):
            store, count = rng.choice(STORES), rng.choice((1, 1, 3))
            await commit(store, count, age_ms=rng.choice((0, 0, 5_000)))
            counts[store] += count
        writing -= 1

    async def number() -> None:
        while writing:
            committed = sum(counts.values())
            assert await Feed(database).number() >= committed
        await Feed(database).number()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for seed in range(4):
            group.create_task(write(seed))
        for _ in range(3):
            group.create_task(number())
    assert_in_order(await line(database), counts)


async def test_a_backlog_of_many_batches_is_numbered(database: Database, commit: Commit) -> None:
    for store in STORES:
        await commit(store, 700)
    assert await Feed(database).number() == 2800
    assert_in_order(await line(database), dict.fromkeys(STORES, 700))


async def test_what_is_marked_is_numbered_with_it_after_what_its_store_told_before(
    database: Database, commit: Commit
) -> None:
    rows = [row for store in ("a", "b") for row in await commit(store, 3)]
    await commit("c", 2)
    outbox = Outbox(database)
    with statements(database) as given:
        await outbox.mark_published([rows[2], rows[3]], LATER)
    written = [each for each, _ in given.given if each.startswith("UPDATE notifications")]
    assert len(written) == 1
    async with database.connect() as connection:
        query = select(notifications.c.store_id, notifications.c.seq, notifications.c.published_at)
        numbered = (await connection.execute(query.order_by(notifications.c.feed).where(
            notifications.c.feed.is_not(None)))).all()  # fmt: skip
    assert [(*each[:2], each[2] is not None) for each in numbered] == [
        ("a", 1, False), ("a", 2, False), ("a", 3, True), ("b", 1, True),
    ]  # fmt: skip
    assert await Feed(database).number() == 8
    await outbox.mark_published(rows, LATER)
    assert_in_order(await line(database), {"a": 3, "b": 3, "c": 2})
    assert {each.store_id for each in await outbox.unpublished(LATER, 10)} == {"c"}


async def test_a_reader_gets_a_page_before_all_the_rest_is_numbered(
    database: Database, commit: Commit
) -> None:
    """While a burst is committed the feed is heard of, not only after it."""
    for store in STORES:
        await commit(store, 700)
    outbox, places = Outbox(database), []
    for head, count in ((1000, 1000), (2000, 1000), (2800, 800), (2800, 0)):
        heads, rows = await outbox.since({EVERY: len(places)}, 1000)
        assert (heads[EVERY], len(rows)) == (head, count)
        places += [(row.store_id, row.seq) for row in rows]
    assert_in_order(places, dict.fromkeys(STORES, 700))


async def test_numbering_ends_although_commits_go_on(
    database: Database, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks waits for what is there, not for what is still to come."""
    connect = database.connect

    @asynccontextmanager
    async def busy() -> AsyncIterator[AsyncConnection]:
        await commit("a")  # whenever one looks, there is something new
        async with connect() as connection:
            yield connection

    await commit("a")
    monkeypatch.setattr(database, "connect", busy)
    async with asyncio.timeout(10):
        assert await Feed(database).number() >= 1


async def test_numbering_and_marking_at_once_do_not_wait_for_each_other_for_ever(
    database: Database, commit: Commit
) -> None:
    outbox = Outbox(database)
    for _ in range(5):
        fresh = []
        for age_ms, store in enumerate(STORES):  # numbered in the other order than marked
            fresh += await commit(store, 100, age_ms=age_ms * 1000)
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(outbox.mark_published(fresh, 1) for _ in "123"), outbox.number(), outbox.number()
            )
    assert_in_order(await line(database), dict.fromkeys(STORES, 500))
    assert await outbox.unpublished(LATER, 1) == []


async def test_clocks_that_differ_do_not_turn_a_stores_order_round(
    database: Database, commit: Commit
) -> None:
    for age_ms in (0, 60_000, 30_000):  # each by a server whose clock is further behind
        await commit("a", age_ms=age_ms)
        await commit("b", age_ms=60_000 - age_ms)
    await Feed(database).number()
    assert_in_order(await line(database), {"a": 3, "b": 3})
    assert (await line(database))[0] == ("b", 1)  # the oldest


# -- clients of a hub ------------------------------------------------------------------------


async def test_the_feed_is_heard_in_order_while_many_write(
    database: Database, redis_server: RedisServer
) -> None:
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        early, late = Peer(), Peer()
        await server.hub.subscribe(early.client, {EVERY: None})

        async def write(store: str) -> None:
            for _ in range(30):
                server.relay.publish(await Commit(database)(store))

        async with asyncio.TaskGroup() as group:
            for store in STORES:
                group.create_task(write(store))
            await asyncio.sleep(0.05)
            await server.hub.subscribe(late.client, {EVERY: 0, "a": 0})
        await hears(early, list(range(1, 121)))
        assert_in_order(
            [(each["id"][0], int(each["id"][2:])) for each in early.heard.events],
            dict.fromkeys(STORES, 30),
        )
        async with asyncio.timeout(10):  # one that watches a store besides hears that one twice
            while len(late.heard.events) < 150:
                await asyncio.sleep(0.005)
        mine = [each for each in late.heard.events if "feedsequence" not in each]
        assert [each["id"] for each in mine] == [f"a:{seq}" for seq in range(1, 31)]
        every = [each for each in late.heard.events if "feedsequence" in each]
        assert [int(each["feedsequence"]) for each in every] == list(range(1, 121))


async def test_a_resume_goes_on_after_the_last_number_on_another_server(
    database: Database, redis_server: RedisServer, commit: Commit
) -> None:
    async with pair(database, redis_server.url) as (one, other):
        peer, again = Peer(), Peer()
        await one.hub.subscribe(peer.client, {EVERY: None})
        for store in STORES:
            one.relay.publish(await commit(store, 2))
        await hears(peer, list(range(1, 9)))
        one.relay.publish(await commit("d"))
        await other.hub.subscribe(again.client, {EVERY: 5})
        await hears(again, [6, 7, 8, 9])
        assert again.heard.answers[0]["stores"] == {EVERY: {"seq": 9, "recovered": True}}
        one.relay.publish(await commit("b"))
        await hears(again, [6, 7, 8, 9, 10])


async def test_while_redis_is_down_the_feed_comes_by_polling(
    own_redis: RedisServer, database: Database, commit: Commit
) -> None:
    async with pair(database, own_redis.url) as (one, other):
        near, far, late = Peer(), Peer(), Peer()
        await one.hub.subscribe(near.client, {EVERY: None})
        await other.hub.subscribe(far.client, {EVERY: None})
        own_redis.stop()
        await asyncio.gather(one.up(False), other.up(False))
        for store in STORES:
            one.relay.publish(await commit(store))
        await hears(near, [1, 2, 3, 4])
        await hears(far, [1, 2, 3, 4])
        await other.hub.subscribe(late.client, {EVERY: 3})
        await hears(late, [4])
        own_redis.start()
        await asyncio.gather(one.up(), other.up())
        one.relay.publish(await commit("c"))
        await hears(near, [1, 2, 3, 4, 5])
        await hears(far, [1, 2, 3, 4, 5])


@pytest.mark.parametrize(("last", "then"), [(1, [4, 5]), (3, [4, 5]), (5, []), (9, [])])
async def test_a_feed_that_was_pruned_says_so_when_it_is_resumed(
    database: Database, redis_server: RedisServer, commit: Commit, last: int, then: list[int]
) -> None:
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        await commit("a", 5)
        await Feed(database).number()
        async with database.begin() as connection:
            await connection.execute(delete(notifications).where(notifications.c.feed <= 3))
        peer = Peer()
        await server.hub.subscribe(peer.client, {EVERY: last})
        await asyncio.sleep(0)
        assert peer.heard.answers == [
            {"type": "subscribed", "stores": {EVERY: {"seq": 5, "recovered": last in (3, 5)}}}
        ]
        await hears(peer, then)
        server.relay.publish(await commit("b"))
        await hears(peer, [*then, 6])


async def test_a_feed_that_was_pruned_under_a_client_says_so(
    database: Database, redis_server: RedisServer, commit: Commit
) -> None:
    server, peer = Server(database, redis_server.url), Peer()
    await server.hub.subscribe(peer.client, {EVERY: None})
    await commit("a", 5)
    await Feed(database).number()
    async with database.begin() as connection:
        await connection.execute(delete(notifications).where(notifications.c.feed <= 3))
    async with server.running():  # it looks in the table only now
        await hears(peer, [4, 5])
        assert peer.heard.answers[1:] == [
            {"type": "subscribed", "stores": {EVERY: {"seq": 3, "recovered": False}}}
        ]


async def test_what_another_server_publishes_is_heard_at_once(
    database: Database, redis_server: RedisServer, commit: Commit
) -> None:
    one = Server(database, redis_server.url)
    other = Server(database, redis_server.url, audit_s=600)  # it is told, or hears nothing
    async with one.running(), other.running():
        await asyncio.gather(one.up(), other.up())
        peer = Peer()
        await other.hub.subscribe(peer.client, {EVERY: None})
        for number in range(1, 21):
            one.relay.publish(await commit("a"))
            await hears(peer, list(range(1, number + 1)))


async def test_what_nobody_told_of_is_found_by_the_audit(
    database: Database, redis_server: RedisServer, commit: Commit
) -> None:
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        peer = Peer()
        await server.hub.subscribe(peer.client, {EVERY: None})
        await commit("a")
        await hears(peer, [1])


# -- on real sockets -------------------------------------------------------------------------


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        for store_id in ("1", "2"):
            path = f"/api/v1/stores/{store_id}"
            assert (await api.call("PUT", path, STORE, auth=token()))[0] == 201
        yield api


async def turn(api: Api, store_id: str, *actions: str) -> None:
    for action in actions:
        path = f"/api/v1/stores/{store_id}/{action}"
        assert (await api.call("POST", path, auth=token()))[0] == 200


def numbers(listener: Listener) -> list[int]:
    return [int(each["feedsequence"]) for each in listener.events]


async def test_all_stores_are_heard_new_ones_too(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        assert await subscribe(ws, {EVERY: None}) == {EVERY: {"seq": 0, "recovered": True}}
        await turn(api, "1", "open")
        assert (await api.call("PUT", "/api/v1/stores/new", STORE, auth=token()))[0] == 201
        await turn(api, "new", "open")
        await turn(api, "1", "close")
        listener = Listener()
        async with asyncio.timeout(20):
            await listener.listen(ws, until=3)
    assert [each["id"] for each in listener.events] == ["1:1", "new:1", "1:2"]
    assert numbers(listener) == [1, 2, 3]


async def test_a_client_goes_from_server_to_server_and_misses_nothing(api: Api) -> None:
    """Two services with one database and one Redis; each time the other server is connected to."""
    async with serving() as other:
        listener, last = Listener(), 0
        for round_, here in enumerate((api, other, api, other)):
            elsewhere = other if here is api else api
            await turn(elsewhere, "2", "open", "close")  # while the client is away
            async with connected(here.port, token()) as ws:
                answer = await subscribe(ws, {EVERY: last})
                assert answer[EVERY]["recovered"] is True
                await turn(here, "1", "open", "close")
                async with asyncio.timeout(20):
                    await listener.listen(ws, until=4 * (round_ + 1))
            last = numbers(listener)[-1]
        assert numbers(listener) == list(range(1, 17))
        listener.assert_each_once(("1", "2"), 8)


async def told(ws: Any, *, of: str) -> dict[str, Any]:
    """The next answer of that type."""
    async with asyncio.timeout(10):
        while (answer := await ws.receive_json())["type"] != of:
            pass
    found: dict[str, Any] = answer
    return found


@pytest.mark.parametrize("stores", [["1", "2"], ["*"], ["1", "*"], []])
async def test_a_token_for_some_stores_has_no_feed(api: Api, stores: list[str]) -> None:
    some = token(scope="notifications:read", stores=stores)
    async with connected(api.port, some) as ws:
        await ws.send_json({"type": "subscribe", "stores": {EVERY: 0}})
        assert (await told(ws, of="subscribed"))["stores"] == {}
        error = await told(ws, of="error")
        assert (error["code"], error["stores"]) == ("forbidden", [EVERY])
        await turn(api, "1", "open")
        await ws.send_json({"type": "ping"})
        assert await ws.receive_json() == {"type": "pong"}


async def test_a_token_renewed_to_some_stores_loses_the_feed(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        await subscribe(ws, {EVERY: None, "1": None})
        await ws.send_json({"type": "authenticate", "token": READER})
        assert await told(ws, of="unsubscribed") == {"type": "unsubscribed", "stores": [EVERY]}
        await turn(api, "2", "open")
        await turn(api, "1", "open")
        event = await ws.receive_json()
        assert event["id"] == "1:1" and "feedsequence" not in event
        await ws.send_json({"type": "ping"})
        assert await ws.receive_json() == {"type": "pong"}
        await ws.send_json({"type": "authenticate", "token": token()})  # and has it again
        assert (await subscribe(ws, {EVERY: 0}))[EVERY] == {"seq": 2, "recovered": True}


async def test_the_feed_goes_on_after_it_was_unsubscribed(api: Api) -> None:
    async with connected(api.port, token()) as ws:
        await subscribe(ws, {EVERY: None})
        await ws.send_json({"type": "unsubscribe", "stores": [EVERY]})
        assert await told(ws, of="unsubscribed") == {"type": "unsubscribed", "stores": [EVERY]}
        await turn(api, "1", "open", "close")
        assert api.cron.parts.hub.clients == 0
        await subscribe(ws, {EVERY: 1})
        assert (await ws.receive_json())["id"] == "1:2"


async def test_numbers_come_though_the_service_was_without_the_feed_before(
    environment: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    """Notifications of before the feed, unnumbered, are part of it at the first subscribe."""
    async with with_stores(sqlite_url, *STORES) as database:
        for store in STORES:
            await Commit(database)(store, 2)
        async with database.begin() as connection:
            await connection.execute(update(notifications).values(published_at=1))
    async with serving() as api, connected(api.port, token()) as ws:
        assert (await subscribe(ws, {EVERY: 0}))[EVERY] == {"seq": 8, "recovered": True}
        listener = Listener()
        async with asyncio.timeout(20):
            await listener.listen(ws, until=8)
        listener.assert_each_once(STORES, 2)
