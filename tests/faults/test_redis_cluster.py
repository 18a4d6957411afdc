"""Redis as a cluster: keys of many jobs on several nodes, moved slots, and a node that dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer
from peers import Peer
from servers import Commit, Server, with_stores
from solocron.clock import SystemClock
from solocron.cron.board import Board, State, tick_key
from solocron.cron.job import Job
from solocron.cron.journal import Entry, Journal
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import LockReadOnly, LockUnavailable
from solocron.locks.cluster import make_link
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Granted, Held
from topologies import Cluster, running
from workers import effects, prepare, start_fleet, until

FOUND_WITHIN_S = 2.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(Cluster(tmp_path)) as topology:
        yield topology


async def test_jobs_on_all_nodes_are_claimed_renewed_seen_and_settled(cluster: Cluster) -> None:
    keys = [cluster.key_on(node) for node in cluster.nodes[:3]]
    async with (
        LockManager(cluster.url, lease_ms=600) as locks,
        LockManager(cluster.url) as other,
    ):
        leases = []
        for key in keys:
            claim = await locks.claim(key, 1000, 60_000)
            assert isinstance(claim, Granted)
            leases.append(claim.lease)
        assert [lock["key"] for lock in await other.locks()] == sorted(keys)
        assert len(await other.locks(limit=2)) == 2
        before = [lease.deadline_s for lease in leases]
        await until(lambda: _all_later(before, [lease.deadline_s for lease in leases]))
        surveys = await other.survey(keys)
        assert [each.owner for each in surveys] == [lease.token for lease in leases]
        for lease in leases:
            held = await other.claim(lease.key, 1000, 60_000)
            assert isinstance(held, Held) and held.owner == lease.token
            assert await locks.release(lease, settle=1000)
            assert await other.claim(lease.key, 1000, 60_000) == Done(1000)
        assert await other.locks() == []


async def _all_later(before: list[float], now: list[float]) -> bool:
    return all(a < b for a, b in zip(before, now, strict=True))


async def test_a_link_that_does_not_know_of_the_cluster_says_what_to_set(cluster: Cluster) -> None:
    foreign = cluster.key_on(cluster.nodes[1])
    async with LockManager(cluster.nodes[0].url) as locks:
        with pytest.raises(LockUnavailable, match="REDIS_CLUSTER=1"):
            await locks.claim(foreign, 1000, 60_000)


async def test_a_slot_that_moves_is_followed(cluster: Cluster) -> None:
    """First the source answers ASK and scripts are refused, then all but the new node MOVED."""
    source, target = cluster.nodes[0], cluster.nodes[1]
    key = cluster.key_on(source)
    slot = source.cli("CLUSTER", "KEYSLOT", key)
    async with LockManager(cluster.url) as locks:
        assert not await locks.is_locked(key)
        target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        await locks.pause(key)
        assert target.cli("CLUSTER", "GETKEYSINSLOT", slot, "10") == f"{{{key}}}:paused"
        assert (await locks.inspect(key)).paused
        assert await locks.resume(key)
        with pytest.raises(LockReadOnly, match=f"the slot of {key} is moving"):
            await locks.claim(key, 1000, 60_000)
        cluster.give(slot, target)
        claim = await locks.claim(key, 1000, 60_000)
        assert isinstance(claim, Granted)
        assert await locks.release(claim.lease, settle=1000)
        assert target.cli("GET", f"{{{key}}}:settled") == "1000"


async def test_an_old_map_is_put_right(cluster: Cluster) -> None:
    source, target = cluster.nodes[0], cluster.nodes[1]
    key = cluster.key_on(source)
    slot = source.cli("CLUSTER", "KEYSLOT", key)
    async with LockManager(cluster.url) as locks:
        assert not await locks.is_locked(key)
        cluster.give(slot, target)
        assert await locks.acquire_lock(key, 60_000)
        assert target.cli("EXISTS", key) == "1"


async def test_many_commands_go_each_to_the_node_of_its_key_in_order(cluster: Cluster) -> None:
    source, target = cluster.nodes[0], cluster.nodes[1]
    moved = [cluster.key_on(source, f"moved{n}") for n in range(3)]
    keys = [*moved, *(f"cron:{n}" for n in range(300))] * 2
    link = make_link(cluster.url, clock=SystemClock(), deadline_s=1)
    try:
        assert await link.call_all([("EXISTS", key) for key in keys], keys) == [0] * len(keys)
        for key in moved:
            cluster.give(source.cli("CLUSTER", "KEYSLOT", key), target)
        lengths = await link.call_all([("APPEND", key, "x") for key in keys], keys)
        assert lengths == [1] * (len(keys) // 2) + [2] * (len(keys) // 2)
        assert [target.cli("GET", key) for key in moved] == ["xx"] * 3
        cluster.nodes[2].stop()
        with pytest.raises(LockUnavailable):
            await link.call_all([("EXISTS", key) for key in keys], keys)
        assert await link.call_all([("STRLEN", key) for key in moved], moved) == [2] * 3
    finally:
        await link.close()


@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_the_replica_that_takes_over_is_found_within_two_seconds(
    cluster: Cluster, how: str
) -> None:
    master = cluster.nodes[0]
    key, elsewhere = cluster.key_on(master), cluster.key_on(cluster.nodes[2])
    async with LockManager(cluster.url) as locks:
        assert isinstance(await locks.claim(key, 1000, 60_000), Granted)
        if how == "killed":
            master.stop()
        else:
            master.pause()
        assert isinstance(await locks.claim(elsewhere, 1000, 60_000), Granted)
        claiming = asyncio.create_task(answered(locks, key))
        promoted_s = await cluster.promoted()
        assert await claiming - promoted_s < FOUND_WITHIN_S


async def answered(locks: LockManager, key: str) -> float:
    """When (monotonic s) a claim of tick 2000 is answered with a grant, or by its own lock."""
    async with asyncio.timeout(20):
        while True:
            try:
                claim = await locks.claim(key, 2000, 60_000)
            except LockUnavailable:
                await asyncio.sleep(0.01)
                continue
            assert isinstance(claim, Granted | Held)
            return time.monotonic()


async def test_a_slot_nobody_serves_is_no_held_lock(cluster: Cluster) -> None:
    lost = cluster.nodes[1]
    key = cluster.key_on(lost)
    async with LockManager(cluster.url) as locks:
        await locks.is_locked(key)
        slots = range(16384 // 3, 2 * 16384 // 3)
        for node in cluster.nodes:
            node.cli("CLUSTER", "DELSLOTS", *(str(slot) for slot in slots))
        with pytest.raises(LockReadOnly, match=r"not served|no node has slot"):
            await locks.claim(key, 1000, 60_000)
        with pytest.raises(LockReadOnly, match="no node has slot"):
            await locks.claim(key, 1000, 60_000)


async def test_no_node_at_all_is_known_within_the_deadline(cluster: Cluster) -> None:
    async with LockManager(cluster.url, deadline_s=0.5) as locks:
        assert not await locks.is_locked("cron:x")
        for node in cluster.nodes:
            node.stop()
        began = time.monotonic()
        with pytest.raises(LockUnavailable):
            await locks.is_locked("cron:x")
        assert time.monotonic() - began < 1.0
        assert not locks.link.is_up


async def test_notifications_cross_the_cluster(cluster: Cluster, postgres_url: str) -> None:
    """The two servers hang on different nodes, and one of the nodes dies."""
    async with with_stores(postgres_url, "42") as database:
        commit = Commit(database)
        reversed_url = _backwards(cluster)
        one, two = Server(database, cluster.url), Server(database, reversed_url)
        async with one.running(), two.running():
            await one.up()
            await two.up()
            peer = Peer()
            await two.hub.subscribe(peer.client, {"42": None})
            one.relay.publish(await commit("42"))
            await peer.has("42", [1])
            cluster.nodes[1].stop()  # two's
            one.relay.publish(await commit("42"))
            await peer.has("42", [1, 2])
            cluster.nodes[1].start()  # sharded pub/sub needs every master
            await two.up()
            one.relay.publish(await commit("42"))
            await peer.has("42", [1, 2, 3])


def _backwards(cluster: Cluster) -> str:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in reversed(cluster.nodes[:2]))
    return f"redis+cluster://{hosts}"


async def test_ticks_run_once_while_a_node_dies(cluster: Cluster, postgres_url: str) -> None:
    database = await prepare(postgres_url)
    owner: RedisServer = next(
        node for node in cluster.nodes[:3] if node.cli("EXISTS", "cron:tick-test").isdigit()
    )
    workers = await start_fleet(2, redis=cluster.url, database=postgres_url, sweep=0.5, lease=2)

    def starts() -> list[tuple[int, bool]]:
        return sorted(
            (e["tick"], e["fallback"]) for w in workers for e in w.events if e["event"] == "start"
        )

    async def more(fallback: bool, count: int) -> None:
        known = len([each for each in starts() if each[1] is fallback])

        async def enough() -> bool:
            return len([each for each in starts() if each[1] is fallback]) >= known + count

        await until(enough)

    try:
        await more(False, 2)
        owner.stop()
        if owner is not cluster.nodes[0]:  # nobody takes over: the ledger decides
            await more(True, 2)
            owner.start()
        await more(False, 3)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    await database.close()


async def test_what_becomes_of_ticks_is_told_on_all_nodes_and_follows_a_slot(
    cluster: Cluster,
) -> None:
    jobs = {
        name: Job(name=name, calendar=Calendar("* * * * *"), body=_body)
        for name in (cluster.key_on(node).removeprefix("cron:") for node in cluster.nodes[:3])
    }
    clock, journal = SystemClock(), Journal()
    board = Board(
        make_link(cluster.url, clock=clock, deadline_s=1), journal, clock=clock, environment="",
        sweep_s=3600, locks_up=lambda: True,
    )  # fmt: skip
    running = asyncio.create_task(board.run(jobs, State))
    first, *_ = jobs
    source, target = cluster.nodes[0], cluster.nodes[1]
    slot = source.cli("CLUSTER", "KEYSLOT", f"cron:{first}")

    async def told(tick: int) -> list[str]:
        for name in jobs:
            journal.note(Entry(name, tick, "ran"))
        assert await board.publish()
        found = [await board.verdicts(job, tick) for job in jobs.values()]
        return [entry.verdict for each in found for entry in each.values()]

    try:
        await until(lambda: _seen(board))
        assert await told(60_000) == ["ran"] * 3
        target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        journal.note(Entry(first, 120_000, "ran"))
        assert await board.publish()
        key = tick_key(jobs[first], 120_000)
        assert key in target.cli("CLUSTER", "GETKEYSINSLOT", slot, "10").split()
        for each in source.cli("CLUSTER", "GETKEYSINSLOT", slot, "10").split():
            source.cli("MIGRATE", "127.0.0.1", str(target.port), each, "0", "5000")
        cluster.give(slot, target)
        assert await told(180_000) == ["ran"] * 3
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await board.close()


async def _seen(board: Board) -> bool:
    return len(await board.workers()) == 1


async def _body(run: Run) -> None: ...
