"""Redis behind Sentinel: the master dies, hangs or is left behind, and nothing runs twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer, fresh_database
from peers import Peer
from servers import Commit, Server, with_stores
from solocron.errors import LockUnavailable
from solocron.locks.address import Address, parse_address
from solocron.locks.connector import Connector
from solocron.locks.manager import LockManager
from solocron.locks.results import Granted
from solocron.notifications.event import cloud_event
from solocron.storage.runs import RunLedger
from topologies import MASTER, Sentinels, running
from workers import effects, prepare, start_fleet, until

KEY = "cron:store-auto-close"
FOUND_WITHIN_S = 2.0


@pytest.fixture
async def sentinels(tmp_path: Path) -> AsyncIterator[Sentinels]:
    async with running(Sentinels(tmp_path)) as topology:
        yield topology


async def granted(locks: LockManager, tick: int) -> float:
    """When (monotonic s) a claim is answered again; it never says `held` or `done` meanwhile."""
    async with asyncio.timeout(20):
        while True:
            try:
                claim = await locks.claim(KEY, tick, 60_000)
            except LockUnavailable:
                await asyncio.sleep(0.01)
                continue
            assert isinstance(claim, Granted)
            await locks.release(claim.lease, settle=tick)
            return time.monotonic()


@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_the_new_master_is_found_within_two_seconds_of_its_promotion(
    sentinels: Sentinels, how: str
) -> None:
    old = sentinels.nodes[0]
    async with LockManager(sentinels.url) as locks:
        await granted(locks, 1000)
        await until(lambda: _replicated(sentinels, "1000"))  # the release, too: else it is held
        if how == "killed":
            old.stop()
        else:
            old.pause()
        claiming = asyncio.create_task(granted(locks, 2000))
        new, promoted_s = await sentinels.promoted(old)
        assert await claiming - promoted_s < FOUND_WITHIN_S
        assert new.cli("GET", f"{{{KEY}}}:settled") == "2000"


async def _replicated(sentinels: Sentinels, settled: str) -> bool:
    return all(n.cli("GET", f"{{{KEY}}}:settled") == settled for n in sentinels.nodes[1:])


async def test_a_sentinel_that_was_cut_off_is_not_believed(
    sentinels: Sentinels, tmp_path: Path
) -> None:
    old = sentinels.nodes[0]
    address = parse_address(sentinels.url)
    old.stop()
    new, _ = await sentinels.promoted(old)
    await sentinels.named(new)
    lone = RedisServer(tmp_path)
    lone.start()
    stale = sentinels.sentinel_of(lone, "stale", 1)  # it knows a master by that name, of epoch 0
    try:
        mixed = Address(
            "sentinel", (stale.url, *address.urls[1:]), address.master, address.data_url
        )
        connection = await Connector(mixed, deadline_s=1.5).open()
        assert connection.port == new.port  # type: ignore[attr-defined]
        await connection.disconnect()
    finally:
        stale.stop()
        lone.stop()


async def test_no_sentinel_and_no_such_master_are_said(sentinels: Sentinels) -> None:
    unknown = sentinels.url.replace(MASTER, "another")
    async with LockManager(unknown) as locks:
        with pytest.raises(LockUnavailable, match="none of 3 sentinels knows a master 'another'"):
            await locks.is_locked(KEY)
    async with LockManager(sentinels.url) as locks:
        assert not await locks.is_locked(KEY)
        for sentinel in sentinels.sentinels:  # an open connection needs no sentinel
            sentinel.stop()
        assert not await locks.is_locked(KEY)


async def test_a_lock_the_failover_lost_is_caught_by_the_ledger(
    sentinels: Sentinels, postgres_url: str
) -> None:
    """Two owners of one lock, one on each side of the failover: the ledger admits one, and the
    other's next renewal finds out."""
    old = sentinels.nodes[0]
    async with (
        fresh_database(postgres_url) as database,
        LockManager(sentinels.url, lease_ms=3000) as left,
        LockManager(sentinels.url, lease_ms=3000) as other,
    ):
        await left.is_locked(KEY)
        sentinels.isolate(old)
        one = await left.claim(KEY, 1000, 60_000)
        new, _ = await sentinels.promoted(old)
        await sentinels.named(new)
        two = await other.claim(KEY, 1000, 60_000)
        assert isinstance(one, Granted) and isinstance(two, Granted)
        ledger = RunLedger(database)
        begin = [
            ledger.begin("store-auto-close", 1000, owner=owner, now_ms=1000, lease_ms=3000,
                         max_attempts=3)
            for owner in ("left", "other")
        ]  # fmt: skip
        verdicts = [(await each).kind for each in begin]
        assert verdicts == ["run", "held"]
        await left.release(one.lease)
        await other.release(two.lease)
        assert new.cli("EXISTS", KEY) == "0"


async def test_a_notification_left_behind_with_the_old_master_arrives(
    sentinels: Sentinels, postgres_url: str
) -> None:
    """One server still publishes on the old master, the other listens on the new one."""
    old = sentinels.nodes[0]
    async with with_stores(postgres_url, "42") as database:
        commit = Commit(database)
        sender, receiver = Server(database, sentinels.url), Server(database, sentinels.url)
        async with sender.running():
            await sender.up()
            sentinels.isolate(old)
            new, _ = await sentinels.promoted(old)
            await sentinels.named(new)
            async with receiver.running():
                await receiver.up()
                peer = Peer()
                await receiver.hub.subscribe(peer.client, {"42": None})
                rows = await commit("42")
                assert await sender.fanout.publish([("42", 1, cloud_event(rows[0]))])
                await peer.has("42", [1])
                assert old.cli("--no-auth-warning", "-a", "nobody-has-it", "ROLE").startswith(
                    "master"
                )


async def test_ticks_run_once_through_a_failover(sentinels: Sentinels, postgres_url: str) -> None:
    database = await prepare(postgres_url)
    workers = await start_fleet(3, redis=sentinels.url, database=postgres_url, sweep=0.5, lease=2)

    async def with_locks(count: int, after: int) -> int:
        """The last tick, once `count` later than `after` ran with a lock."""
        ticks: list[int] = []

        async def enough() -> bool:
            nonlocal ticks
            starts = [e for w in workers for e in w.events if e["event"] == "start"]
            ticks = sorted(e["tick"] for e in starts if not e["fallback"] and e["tick"] > after)
            return len(ticks) >= count

        await until(enough)
        return ticks[-1]

    try:
        last = await with_locks(2, 0)
        old = sentinels.nodes[0]
        old.stop()
        await sentinels.promoted(old)
        await with_locks(3, last)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    await database.close()
