"""Sharded pub/sub: notifications through all masters of a cluster, while slots and masters move."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from conftest import RedisServer, bundled_redis, redis_binary
from peers import Peer
from servers import Commit, Server, with_stores
from sides import Side, watched
from solocron.locks.manager import LockManager
from solocron.locks.results import Granted
from solocron.locks.slots import Node, slot_of
from solocron.notifications import subscriptions
from solocron.storage.feed import EVERY
from topologies import Cluster, running, until

README = Path(__file__).parents[2] / "README.md"
CHANNEL = "solocron:notifications:"
SHARDED = ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")


def version_of(binary: str) -> int:
    told = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"v=(\d+)\.", told)
    assert found is not None, told
    return int(found[1])


@pytest.fixture
def redis_7() -> str:
    binary = redis_binary()
    if version_of(binary) < 7:
        pytest.skip("sharded pub/sub needs Redis 7 or later: apt-get install redis-server")
    return binary


@pytest.fixture
async def cluster(tmp_path: Path, redis_7: str) -> AsyncIterator[Cluster]:
    async with running(Cluster(tmp_path, binary=redis_7)) as topology:
        yield topology


def lines(node: RedisServer, *command: str) -> set[str]:
    return set(node.cli(*command).split())


def channels(cluster: Cluster) -> list[set[str]]:
    """The stores whose channels are subscribed to, at each node that runs."""
    return [
        {each.removeprefix(CHANNEL) for each in lines(node, "PUBSUB", "SHARDCHANNELS")}
        for node in cluster.nodes
        if node.is_running
    ]


def sent(node: RedisServer, kind: str) -> int:
    """How many messages of a kind a node has sent over the cluster's bus."""
    found = re.search(rf"cluster_stats_messages_{kind}_sent:(\d+)", node.cli("CLUSTER", "INFO"))
    return int(found[1]) if found else 0


def stores_on(cluster: Cluster, node: RedisServer, count: int = 1) -> list[str]:
    """Stores whose channels are in slots of that node."""
    there = (f"s{n}" for n in range(10_000) if node.cli("EXISTS", f"{CHANNEL}s{n}").isdigit())
    return [next(there) for _ in range(count)]


async def comes(condition: Callable[[], bool]) -> None:
    """Wait for what Redis is asked for, and let this loop run meanwhile."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def moves(cluster: Cluster, store: str, target: RedisServer) -> None:
    """The slot of a store's channel becomes the target's, which knows it first."""
    await asyncio.to_thread(cluster.give, str(slot_of(CHANNEL + store)), target)


# -- channels --------------------------------------------------------------------------------


async def test_messages_stay_with_the_master_of_their_slot(cluster: Cluster) -> None:
    stores = [f"s{number}" for number in range(300)]
    messages = [(store, seq, b"{}") for seq in range(1, 4) for store in stores]
    async with Side(cluster.url).running() as one, Side(cluster.url).running() as other:
        await asyncio.gather(one.up(), other.up())
        await other.fanout.watch([*stores, EVERY])
        assert await one.fanout.publish(messages)
        await until(lambda: len(other.heard) == len(messages) and other.nudges == 1)
        seqs = defaultdict(list)
        for store, seq, _ in other.heard:
            seqs[store].append(seq)
        assert seqs == {store: [1, 2, 3] for store in stores}
        *masters, replica = channels(cluster)
        assert set().union(*masters) == {*stores, EVERY} and not replica
        assert sum(map(len, masters)) == 301 and all(len(each) > 50 for each in masters)
        assert not any(lines(node, "PUBSUB", "CHANNELS") for node in cluster.nodes)
        assert [sent(node, "publish") for node in cluster.nodes] == [0] * 4
        # A master tells its replica, and nobody else has one.
        assert [sent(node, "publishshard") > 0 for node in cluster.nodes] == [True] + [False] * 3
        await other.fanout.unwatch([*stores, EVERY])
        await comes(lambda: not any(channels(cluster)))


async def test_what_is_watched_is_subscribed_however_slots_move_meanwhile(
    cluster: Cluster,
) -> None:
    rng = random.Random(9)
    stores = [f"s{number}" for number in range(12)]
    wanted: set[str] = set()
    async with Side(cluster.url).running() as side:
        await side.up()
        for _ in range(15):
            calls = [
                asyncio.create_task(
                    moves(cluster, rng.choice(stores), rng.choice(cluster.nodes[:3]))
                )
            ]
            for _ in range(rng.randrange(1, 6)):
                some = rng.sample(stores, rng.randrange(1, 5))
                if rng.random() < 0.6:
                    wanted.update(some)
                    calls.append(asyncio.create_task(side.fanout.watch(some)))
                else:
                    wanted.difference_update(some)
                    calls.append(asyncio.create_task(side.fanout.unwatch(some)))
                for _ in range(rng.choice((0, 1, 5, 50))):
                    await asyncio.sleep(0)
            await asyncio.gather(*calls)
            assert watched(side) == wanted
        await side.up()
        await comes(lambda: sorted(s for each in channels(cluster) for s in each) == sorted(wanted))
        for store in wanted:
            assert await side.fanout.publish([(store, 1, b"{}")])
            await side.hears((store, 1, b"{}"))


async def test_a_watch_returns_when_messages_do_arrive_though_its_map_was_old(
    cluster: Cluster,
) -> None:
    source, target = cluster.nodes[1], cluster.nodes[2]
    stores = stores_on(cluster, source, 4)
    async with Side(cluster.url).running() as side, Side(cluster.url).running() as other:
        await asyncio.gather(side.up(), other.up())
        for store in stores:
            await moves(cluster, store, target)
            await side.fanout.watch([store])
            assert await other.fanout.publish([(store, 1, b"{}")])
            await side.hears((store, 1, b"{}"))


# -- a hub's clients, while the cluster changes ----------------------------------------------


class Traffic:
    """What server `one` publishes without end, and a client of server `other` hears: by Redis, or
    because of a change in it, as the table is not looked at unasked."""

    def __init__(self, one: Server, other: Server, commit: Commit, stores: list[str]) -> None:
        self.one, self.other = one, other
        self.peer = Peer()
        self.stores = stores
        self._commit = commit
        self._sent = dict.fromkeys(stores, 0)
        self._stopping = False

    async def flow(self) -> None:
        while not self._stopping:
            for store in self.stores:
                self.one.relay.publish(await self._commit(store))
                self._sent[store] += 1
            await asyncio.sleep(0.002)

    async def goes_on(self, count: int = 5) -> None:
        """Wait until the client has heard so many more of each store."""
        aims = {store: sent + count for store, sent in self._sent.items()}
        await until(lambda: all(len(self.peer.heard.seqs[s]) >= aim for s, aim in aims.items()))

    def end(self) -> None:
        self._stopping = True

    async def all_heard(self) -> None:
        """Each once and in order."""
        async with asyncio.timeout(20):
            for store, count in self._sent.items():
                await self.peer.has(store, list(range(1, count + 1)))


@asynccontextmanager
async def traffic(cluster: Cluster, database_url: str, stores: list[str]) -> AsyncIterator[Traffic]:
    """Goes on until the block ends, and then all of it must have been heard."""
    async with with_stores(database_url, *stores) as database:
        servers = [Server(database, cluster.url, audit_s=600) for _ in range(2)]
        async with servers[0].running(), servers[1].running():
            await asyncio.gather(*(each.up() for each in servers))
            flow = Traffic(servers[0], servers[1], Commit(database), stores)
            await flow.other.hub.subscribe(flow.peer.client, dict.fromkeys(stores))
            async with asyncio.TaskGroup() as group:
                group.create_task(flow.flow())
                await flow.goes_on()
                yield flow
                await flow.goes_on()
                flow.end()
            await flow.all_heard()


async def test_slots_that_move_under_traffic_lose_and_double_nothing(
    cluster: Cluster, postgres_url: str
) -> None:
    source, target = cluster.nodes[1], cluster.nodes[2]
    stores = [*stores_on(cluster, source, 3), *stores_on(cluster, target, 1)]
    async with traffic(cluster, postgres_url, stores) as flow:
        for _ in range(4):
            for store in stores[:3]:
                slot = str(slot_of(CHANNEL + store))
                for node, state, peer in (
                    (target, "IMPORTING", source), (source, "MIGRATING", target)
                ):  # fmt: skip
                    node.cli("CLUSTER", "SETSLOT", slot, state, cluster.id_of(peer))
                await flow.goes_on(1)
                await moves(cluster, store, target)
                await flow.goes_on(1)
            source, target = target, source
        assert flow.other.fanout.is_up
    assert sent(cluster.nodes[1], "publish") == 0


async def test_a_publisher_and_a_subscriber_who_hear_of_a_move_at_different_times(
    cluster: Cluster, postgres_url: str
) -> None:
    """The new server knows of it, the old one does not yet: both take messages."""
    source, target = cluster.nodes[1], cluster.nodes[2]
    (store,) = stores_on(cluster, source)
    slot, new = str(slot_of(CHANNEL + store)), cluster.id_of(target)
    async with traffic(cluster, postgres_url, [store]) as flow:
        target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        target.cli("CLUSTER", "SETSLOT", slot, "NODE", new)
        assert flow.other.fanout._slots is not None
        flow.other.fanout._slots.moved(int(slot), Node("127.0.0.1", target.port))
        await flow.goes_on()
        source.cli("CLUSTER", "SETSLOT", slot, "NODE", new)


async def test_a_last_message_that_fell_in_between_is_looked_for(
    cluster: Cluster, postgres_url: str
) -> None:
    """The new server took it before the subscriber was there, and no later one shows a gap."""
    source, target = cluster.nodes[1], cluster.nodes[2]
    (store,) = stores_on(cluster, source)
    async with with_stores(postgres_url, store) as database:
        server, peer = Server(database, cluster.url, audit_s=600), Peer()
        async with server.running():
            await server.up()
            await server.hub.subscribe(peer.client, {store: None})
            await server.outbox.mark_published(await Commit(database)(store), 1)  # no sweep for it
            cluster.give(
                str(slot_of(CHANNEL + store)), target
            )  # in one turn of this loop: the server hears of it later
            assert target.cli("SPUBLISH", CHANNEL + store, "1 {}") == "0"
            await peer.has(store, [1])


@pytest.mark.parametrize("how", ["killed", "hung", "replaced"])
async def test_the_replica_that_takes_over_gets_its_channels(
    cluster: Cluster, postgres_url: str, how: str
) -> None:
    master = cluster.nodes[0]
    stores = [*stores_on(cluster, master, 2), *stores_on(cluster, cluster.nodes[1], 1)]
    async with traffic(cluster, postgres_url, stores) as flow:
        if how == "killed":
            master.stop()
        elif how == "hung":
            master.pause()
        else:
            assert cluster.replica.cli("CLUSTER", "FAILOVER") == "OK"
        await cluster.promoted()
        await comes(lambda: channels(cluster)[-1] == set(stores[:2]))
        await flow.other.up()
    if how == "hung":
        master.resume()


async def test_only_what_a_dead_master_had_is_looked_for_in_the_table(cluster: Cluster) -> None:
    """Nobody takes over; the others go on, and when it is back so does all."""
    lost = cluster.nodes[1]
    mine, elsewhere = stores_on(cluster, lost, 3), stores_on(cluster, cluster.nodes[2], 3)
    async with Side(cluster.url).running() as side, Side(cluster.url).running() as other:
        await asyncio.gather(side.up(), other.up())
        await side.fanout.watch([*mine, *elsewhere])
        side.changed.clear()
        lost.stop()
        await side.up(False)
        assert side.changed == [set(mine)]
        await other.fanout.publish([(elsewhere[0], 1, b"{}")])
        await side.hears((elsewhere[0], 1, b"{}"))
        lost.start()
        await side.up()
        assert set().union(*side.changed[1:]) == set(mine)
        assert await other.fanout.publish([(mine[0], 1, b"{}")])
        await side.hears((mine[0], 1, b"{}"))


async def test_the_table_stands_in_for_a_dead_master(cluster: Cluster, postgres_url: str) -> None:
    lost = cluster.nodes[1]
    stores = [*stores_on(cluster, lost, 1), *stores_on(cluster, cluster.nodes[2], 1)]
    async with traffic(cluster, postgres_url, stores) as flow:
        lost.stop()
        await flow.other.up(False)
        await flow.goes_on()
        lost.start()
        await flow.other.up()


# -- where plain pub/sub is all there is -----------------------------------------------------


@pytest.fixture(params=["old", "unknown", "forbidden"])
async def plain(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster of Redis 6.2 (where there is a wheel of it), one whose servers do not know the
    commands, and one that forbids them."""
    binary, options = redis_binary(), list[str]()
    if request.param == "old":
        binary = bundled_redis() or binary
    if version_of(binary) >= 7 and request.param != "forbidden":
        options = [word for name in SHARDED for word in ("--rename-command", name, "")]
    elif request.param == "forbidden":
        binary = request.getfixturevalue("redis_7")
    async with running(Cluster(tmp_path, *options, binary=binary)) as topology:
        if request.param == "forbidden":
            permit(topology, False)
        yield topology


def permit(cluster: Cluster, sharded: bool) -> None:
    """Give every user the right to sharded pub/sub, or take it."""
    rights = [f"{'+' if sharded else '-'}{name.lower()}" for name in SHARDED]
    for node in cluster.nodes:
        assert node.cli("ACL", "SETUSER", "default", *rights) == "OK"


async def test_without_sharded_pub_sub_all_goes_by_plain(plain: Cluster) -> None:
    stores = [f"s{number}" for number in range(50)]
    messages = [(store, 1, b"{}") for store in stores]
    async with Side(plain.url).running() as one, Side(plain.url).running() as other:
        await asyncio.gather(one.up(), other.up())
        await other.fanout.watch(stores)
        assert await one.fanout.publish(messages)
        await other.hears(messages[-1])
        assert other.heard == messages
        assert any(lines(node, "PUBSUB", "CHANNELS") for node in plain.nodes)


def goes(side: Side, sharded: bool) -> bool:
    """Whether a side's link to Redis is of this kind."""
    links = side.fanout._subscriptions._links.values()
    return bool(links) and all(link._sharded is sharded for link in links)


async def test_servers_change_over_together_when_all_masters_know_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_REVIEW_S", (0.1, 0.2))
    permit(cluster, False)
    sides = Side(cluster.url), Side(cluster.url)
    one, other = sides
    async with one.running(), other.running():
        await asyncio.gather(one.up(), other.up())
        await other.fanout.watch(["a"])
        for seq, sharded in enumerate((False, True, False, True), 1):
            permit(cluster, sharded)
            for side in sides:
                await until(partial(goes, side, sharded))
            await asyncio.gather(one.up(), other.up())
            assert any(channels(cluster)) is sharded
            assert await one.fanout.publish([("a", seq, b"{}")])
            await other.hears(("a", seq, b"{}"))


async def test_the_rights_the_readme_gives_are_enough_on_a_cluster(cluster: Cluster) -> None:
    text = README.read_text()
    rule = re.search(r"^ACL SETUSER solocron (.*)$", text, re.MULTILINE)
    more = re.search(r"with one of Redis 7 or later `(.*)` besides", text)
    assert rule is not None and more is not None
    words = [*rule[1].replace(">PASSWORD", ">pass-word").split(), *more[1].split()]
    for node in cluster.nodes:
        assert node.cli("ACL", "SETUSER", "solocron", *words) == "OK"
    url = cluster.url.replace("://", "://solocron:pass-word@")
    async with LockManager(url) as locks, Side(url).running() as side:
        assert isinstance(await locks.claim("cron:x", 1000, 60_000), Granted)
        await side.up()
        await side.fanout.watch(["a", "b"])
        assert set().union(*channels(cluster)) == {"a", "b"}
        assert await side.fanout.publish([("b", 1, b"{}")])
        await side.hears(("b", 1, b"{}"))
        await side.fanout.unwatch(["a", "b"])
        await comes(lambda: not any(channels(cluster)))
