"""Locks of one's own: one holder among all servers, for whatever they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from conftest import RedisServer
from solocron import ConfigError, LeaseLost, LockManager, LockNotAcquired, Solocron
from solocron.locks.lock import Lock
from solocron.settings import load

TTL_MS = 60_000


@pytest.fixture
async def pair(redis_server: RedisServer) -> AsyncIterator[tuple[LockManager, LockManager]]:
    async with (
        LockManager(redis_server.url, lease_ms=600) as one,
        LockManager(redis_server.url, lease_ms=600) as two,
    ):
        yield one, two


async def test_one_holds_it_and_the_next_waits_for_it(
    pair: tuple[LockManager, LockManager],
) -> None:
    one, two = pair
    held: list[str] = []

    async def second() -> None:
        async with Lock(two, "reindex", TTL_MS, wait_s=20):
            held.append("second")

    async with Lock(one, "reindex", TTL_MS) as lease:
        lease.ensure()
        with pytest.raises(LockNotAcquired, match="reindex is held by"):
            await Lock(two, "reindex", TTL_MS).acquire()
        with pytest.raises(LockNotAcquired):
            await Lock(two, "reindex", TTL_MS).acquire(0.3)
        waiting = asyncio.create_task(second())
        await asyncio.sleep(1)  # longer than its lease: it is renewed
        held.append("first")
    await waiting
    assert held == ["first", "second"]
    assert not await one.is_locked("reindex")


async def test_who_loses_it_is_cancelled_and_told(
    pair: tuple[LockManager, LockManager], redis_server: RedisServer
) -> None:
    with pytest.raises(LeaseLost):
        async with Lock(pair[0], "reindex", TTL_MS):
            redis_server.cli("del", "reindex")
            await asyncio.sleep(20)


async def test_acquired_by_hand_it_is_released_by_hand(
    pair: tuple[LockManager, LockManager],
) -> None:
    lock = Lock(pair[0], "reindex", TTL_MS)
    lease = await lock.acquire()
    assert lock.lease is lease
    with pytest.raises(ConfigError, match="is held here: make another"):
        await lock.acquire()
    assert (await lock.release(), await lock.release(), lock.lease) == (True, False, None)


async def test_a_cancelled_wait_leaves_no_lock(
    pair: tuple[LockManager, LockManager], redis_server: RedisServer
) -> None:
    async with Lock(pair[0], "reindex", TTL_MS):
        waiting = asyncio.create_task(Lock(pair[1], "reindex", TTL_MS).acquire(20))
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert redis_server.cli("keys", "*") == ""


async def test_what_is_held_when_the_manager_is_closed_is_told_and_freed(
    redis_server: RedisServer,
) -> None:
    told = asyncio.Event()

    async def body(locks: LockManager) -> None:
        with pytest.raises(LeaseLost, match="reindex lost: its lock manager was closed"):
            async with Lock(locks, "reindex", TTL_MS):
                told.set()
                await asyncio.sleep(20)

    async with LockManager(redis_server.url) as locks, asyncio.TaskGroup() as group:
        group.create_task(body(locks))
        by_hand = Lock(locks, "by-hand", TTL_MS)
        await by_hand.acquire()
        await told.wait()
        await locks.__aexit__()
        assert redis_server.cli("exists", "reindex", "by-hand").strip() == "0"
        redis_server.cli("client", "kill", "type", "normal")
        assert not await by_hand.release()  # nor does that connect again
        assert redis_server.cli("client", "list").count("cmd=") == 1  # the one that asks


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"key": "a b"}, "lock key 'a b': give"),
        ({"ttl": timedelta(0)}, "ttl of lock 'reindex' is 0.0: give 1 to"),
        ({"wait": timedelta(-1)}, r"wait for lock 'reindex' is -86400.0 s: give 0 to 86400 s"),
    ],
)
async def test_what_cannot_be_is_refused(
    environment: pytest.MonkeyPatch, options: dict[str, Any], complaint: str
) -> None:
    cron = Solocron(load())
    with pytest.raises(ConfigError, match=complaint):
        cron.lock(**{"key": "reindex", **options})
    with pytest.raises(ConfigError, match="start the service, which renews its locks, first"):
        await cron.lock("reindex").acquire()
    await cron.stop()


async def test_a_service_has_locks_for_its_host(environment: pytest.MonkeyPatch) -> None:
    cron = Solocron(load())
    async with cron:
        async with cron.hold("reindex", timedelta(minutes=1)) as lease:
            assert lease.ttl_ms == TTL_MS
            with pytest.raises(LockNotAcquired):
                async with cron.hold("reindex"):
                    pass
        async with cron.lock("reindex", wait=timedelta(seconds=1)):
            pass
