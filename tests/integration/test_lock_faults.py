"""Lock faults met in the field, on a real redis-server; a proxy before it loses replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from conftest import RedisServer
from proxy import Proxy
from solocron.clock import SystemClock
from solocron.errors import LeaseLost, LockReadOnly, LockUnavailable
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Granted, Held, token_tick

KEY = "cron:store-auto-close"


def manager(url: str, **options: Any) -> LockManager:
    return LockManager(url, clock=SystemClock(), **options)


@pytest.fixture
async def other(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with manager(redis_server.url) as locks:
        yield locks


async def until(condition: Any, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def clients(server: RedisServer) -> set[str]:
    """The ids of the connections that are not redis-cli's own."""
    lines = server.cli("client", "list").splitlines()
    return {line.split()[0] for line in lines if "cmd=client" not in line}


# -- lost replies ------------------------------------------------------------------------------


async def test_an_acquire_whose_grant_was_lost_says_granted_and_has_one_owner(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with Proxy(redis_server.port) as proxy, manager(proxy.redis_url) as locks:
        await locks.is_locked(KEY)
        proxy.lose_reply_to(b"EVALSHA")
        assert await locks.acquire_lock(KEY, 60_000)
        assert proxy.lost == 1
        assert not await other.acquire_lock(KEY, 60_000)
        assert redis_server.cli("get", KEY) in locks._owned
        assert await locks.release_lock(KEY)
        assert not await other.is_locked(KEY)


async def test_a_claim_whose_grant_was_lost_is_trusted_from_before_the_first_request(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with Proxy(redis_server.port) as proxy, manager(proxy.redis_url) as locks:
        await locks.is_locked(KEY)
        proxy.lose_reply_to(b"EVALSHA")
        before = time.monotonic()
        claim = await locks.claim(KEY, 1000, 60_000)
        assert isinstance(claim, Granted)
        assert claim.lease.deadline_s <= before + 30.1
        held = await other.claim(KEY, 1000, 60_000)
        assert isinstance(held, Held) and held.owner == claim.lease.token
        await locks.release(claim.lease, settle=1000)
        assert await other.claim(KEY, 1000, 60_000) == Done(1000)


async def test_a_lost_release_reply_is_no_error_and_the_lock_is_free(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with Proxy(redis_server.port) as proxy, manager(proxy.redis_url) as locks:
        with pytest.raises(ZeroDivisionError):  # the body's own error is not masked
            async with locks.hold(KEY, 60_000):
                proxy.lose_reply_to(b"EVALSHA")
                raise ZeroDivisionError
        assert proxy.lost == 1
        assert not await other.is_locked(KEY)


async def test_a_grant_that_comes_late_is_not_trusted(own_redis: RedisServer) -> None:
    async with manager(own_redis.url, lease_ms=300, deadline_s=10) as locks:
        await locks.is_locked(KEY)
        own_redis.pause()
        claiming = asyncio.create_task(locks.claim(KEY, 1000, 60_000))
        await asyncio.sleep(0.4)  # longer than the lease
        own_redis.resume()
        claim = await claiming
        assert isinstance(claim, Granted)
        with pytest.raises(LeaseLost):
            claim.lease.ensure()
        await locks.release(claim.lease)


# -- the connection ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "?socket_timeout=0.2&decode_responses=true&protocol=3"])
async def test_an_idle_connection_stays_up_whatever_the_url_asks_for(
    redis_server: RedisServer, options: str
) -> None:
    async with manager(redis_server.url + options) as locks:
        assert await locks.acquire_lock(KEY, 60_000)
        session = locks.link._session
        assert session is not None and session._connection.socket_timeout is None
        await asyncio.sleep(0.4)
        assert await locks.release_lock(KEY)
        assert locks.link._session is session


async def test_a_cancelled_call_costs_neither_the_connection_nor_the_order(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager(redis_server.url) as locks:
        await locks.is_locked(KEY)
        session = locks.link._session
        asking = asyncio.create_task(locks.is_locked(KEY))
        await asyncio.sleep(0)
        asking.cancel()
        assert await locks.link.call("ECHO", "next") == b"next"
        assert locks.link._session is session
    assert caplog.records == []


async def test_a_redis_that_comes_back_is_found_and_each_change_is_said_once(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with manager(own_redis.url, deadline_s=0.2) as locks:
        for _ in range(2):
            assert not await locks.is_locked(KEY)
            own_redis.stop()
            for _ in range(3):
                with pytest.raises(LockUnavailable):
                    await locks.is_locked(KEY)
            own_redis.start()
    said = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("Redis lost") for text in said) == 2
    assert said.count("✅ Redis ready for distributed locks") == 2


async def test_a_call_has_its_own_deadline_whoever_waits_before_it(own_redis: RedisServer) -> None:
    async with manager(own_redis.url, deadline_s=0.6) as locks:
        await locks.is_locked(KEY)
        own_redis.pause()
        loop = asyncio.get_running_loop()
        first, began = asyncio.create_task(locks.is_locked(KEY)), loop.time()
        await asyncio.sleep(0.4)
        second, later = [asyncio.create_task(locks.is_locked(KEY)) for _ in range(2)]
        with pytest.raises(LockUnavailable, match=r"^Redis gave no answer within 0\.6 s$"):
            await first
        assert 0.55 < loop.time() - began < 0.9
        own_redis.resume()
        assert [await second, await later] == [False, False]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_stalled_loop_is_not_taken_for_a_lost_redis(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, loop: Any
) -> None:
    async def main() -> None:
        async with manager(redis_server.url, deadline_s=0.2) as locks:
            await locks.is_locked(KEY)
            asking = [asyncio.create_task(locks.acquire_lock(key, 60_000)) for key in (KEY, "two")]
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251  # one reply is there, one not asked for; both are due
            assert await asyncio.gather(*asking) == [True, True]

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert caplog.records == []


# -- races with cancellation and release -------------------------------------------------------


async def _claim(locks: LockManager) -> None:
    claim = await locks.claim(KEY, -1, 60_000)
    assert isinstance(claim, Granted)
    await locks.release(claim.lease)


async def _hold(locks: LockManager) -> None:
    async with locks.hold(KEY, 60_000):
        await asyncio.sleep(0)


@pytest.mark.parametrize("how", [_claim, _hold])
async def test_a_cancel_racing_a_grant_leaves_no_key_and_no_task(
    redis_server: RedisServer, how: Any
) -> None:
    before, cancelled = asyncio.all_tasks(), 0
    for turns in range(40):
        async with manager(redis_server.url) as locks:
            await locks.is_locked(KEY)
            work: Coroutine[Any, Any, None] = how(locks)
            task = asyncio.create_task(work)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            cancelled += task.cancelled()
        assert redis_server.cli("keys", "*") == "", f"cancelled after {turns} turns"
        assert asyncio.all_tasks() == before
    assert cancelled > 5


async def test_a_release_racing_a_renewal_in_flight_leaves_no_key_and_no_task(
    own_redis: RedisServer,
) -> None:
    before = asyncio.all_tasks()
    async with manager(own_redis.url, lease_ms=300, deadline_s=10) as locks:
        claim = await locks.claim(KEY, 1000, 60_000)
        assert isinstance(claim, Granted)
        own_redis.pause()
        session = locks.link._session
        assert session is not None
        await until(lambda: session._pending)  # the renewal is on its way
        releasing = asyncio.create_task(locks.release(claim.lease))
        await asyncio.sleep(0)
        own_redis.resume()
        assert await releasing
        assert locks.leases == 0
    assert own_redis.cli("keys", "*") == ""
    assert asyncio.all_tasks() == before


async def test_what_an_outage_left_unknown_is_given_back_by_one_task(
    own_redis: RedisServer,
) -> None:
    async with manager(own_redis.url, deadline_s=0.3) as locks:
        await locks.is_locked(KEY)
        own_redis.pause()
        before = len(asyncio.all_tasks())
        asked = [locks.acquire_lock(f"cron:{n}", 60_000) for n in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, LockUnavailable) for answer in answers)
        assert len(asyncio.all_tasks()) <= before + 1
        own_redis.resume()
        await until(lambda: not locks._strays._strays)
        assert own_redis.cli("keys", "*") == ""


# -- Redis that answers, but refuses -----------------------------------------------------------


async def test_a_read_only_server_is_said_to_be_so_and_its_connection_is_dropped(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager(own_redis.url) as locks:
        assert await locks.acquire_lock("cron:other", 5000)
        ours = clients(own_redis)
        assert len(ours) == 1
        own_redis.cli("replicaof", "127.0.0.1", "1")
        for _ in range(3):
            with pytest.raises(LockReadOnly, match="read only replica"):
                await locks.acquire_lock(KEY, 5000)
            with pytest.raises(LockReadOnly):
                await locks.survey([KEY])
        await asyncio.sleep(0)
        assert not ours & clients(own_redis)
        lost = [r for r in caplog.records if r.getMessage().startswith("Redis lost")]
        assert len(lost) == 1
        own_redis.cli("replicaof", "no", "one")
        assert await locks.acquire_lock(KEY, 5000)


async def test_a_failing_snapshot_is_not_held(own_redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "dump.rdb").mkdir()  # no snapshot can be written in its place
    for setting, value in (("save", "3600 1"), ("stop-writes-on-bgsave-error", "yes")):
        own_redis.cli("config", "set", setting, value)
    async with manager(own_redis.url) as locks:
        await locks.is_locked(KEY)
        own_redis.cli("bgsave")
        await until(lambda: "rdb_last_bgsave_status:err" in own_redis.cli("info", "persistence"))
        with pytest.raises(LockReadOnly, match="MISCONF"):
            await locks.acquire_lock(KEY, 5000)
        own_redis.cli("config", "set", "save", "")
        assert await locks.acquire_lock(KEY, 5000)


@pytest.mark.parametrize(
    "reply",
    ["OOM command not allowed", "CLUSTERDOWN Hash slot not served", "MASTERDOWN Link is down",
     "NOREPLICAS Not enough good replicas", "LOADING Redis is loading", "MISCONF snapshots fail",
     "READONLY You can't write", "ERR Error running script: user_script:1: -OOM command"],
)  # fmt: skip
async def test_every_form_of_refusal_is_told_apart_from_held(
    redis_server: RedisServer, reply: str
) -> None:
    async with manager(redis_server.url) as locks:
        for _ in range(2):  # on a new connection, and on one that is there
            with pytest.raises(LockReadOnly):
                await locks.link.call("EVAL", "return redis.error_reply(ARGV[1])", 0, reply)
            await locks.is_locked(KEY)


async def test_a_refusal_of_the_connection_itself_is_retried_on_another(
    redis_server: RedisServer,
) -> None:
    async with manager(redis_server.url) as locks:
        await locks.is_locked(KEY)
        script = """
            if redis.call('INCR', KEYS[1]) > 2 then return 'in' end
            return redis.error_reply('NOAUTH Authentication required.')
        """
        assert await locks.link.call("EVAL", script, 1, "knocks") == b"in"


async def test_an_error_for_an_answer_is_unavailable_and_never_held(
    redis_server: RedisServer,
) -> None:
    redis_server.cli("lpush", KEY, "not a lock")
    async with manager(redis_server.url) as locks:
        with pytest.raises(LockUnavailable, match="WRONGTYPE"):
            await locks.acquire_lock(KEY, 5000)


async def test_a_reply_that_never_ends_is_cut_off(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solocron.locks.session._MAX_REPLY", 100_000)
    async with manager(redis_server.url) as locks:
        long = "return string.rep('x', ARGV[1])"
        assert len(await locks.link.call("EVAL", long, 0, 90_000)) == 90_000
        with pytest.raises(LockUnavailable, match="reply of more than 100000 bytes"):
            await locks.link.call("EVAL", long, 0, 1_000_000)
        assert not await locks.is_locked(KEY)


# -- who owns what -----------------------------------------------------------------------------


async def test_containers_that_share_host_name_and_pid_are_told_apart(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with manager(redis_server.url) as locks:
        assert locks._identity == other._identity  # as in two containers of one image
        assert await locks.acquire_lock(KEY, 60_000)
        assert not await other.acquire_lock(KEY, 60_000)
        assert not await other.release_lock(KEY)
        assert [lock["ours"] for lock in await locks.locks()] == [True]
        assert [lock["ours"] for lock in await other.locks()] == [False]
        assert await locks.release_lock(KEY)


async def test_the_list_of_locks_has_locks_only_and_is_bounded(
    redis_server: RedisServer, other: LockManager
) -> None:
    redis_server.cli("lpush", "cron:a-list", "x")
    redis_server.cli("set", "cron:of-an-older-server", "locked", "PX", "60000")
    for number in range(5):
        await other.claim(f"cron:{number}", 1000, 60_000)
    found = await other.locks()
    assert [lock["key"] for lock in found] == [f"cron:{n}" for n in range(5)] + [
        "cron:of-an-older-server"
    ]
    assert all(0 < lock["ttl_ms"] <= 60_000 for lock in found)
    assert len(await other.locks(limit=2)) == 2


async def test_an_owner_that_slept_past_its_lease_settles_only_what_it_ran(
    redis_server: RedisServer, other: LockManager
) -> None:
    async with manager(redis_server.url) as locks:
        slept = await locks.claim(KEY, 1000, 60_000)
        assert isinstance(slept, Granted)
        redis_server.cli("del", f"{{{KEY}}}:alive")
        survivor = await other.claim(KEY, 3000, 60_000)
        assert isinstance(survivor, Granted)
        assert token_tick(survivor.previous_owner) == 1000
        assert not await locks.release(slept.lease, settle=1000, covers=3000)
        assert redis_server.cli("get", f"{{{KEY}}}:settled") == "1000"
        assert await other.release(survivor.lease, settle=3000, covers=5000)
        assert await locks.claim(KEY, 4000, 60_000) == Done(5000)


async def test_the_bodys_own_check_of_a_lost_lease_cancels_nothing_later(
    redis_server: RedisServer,
) -> None:
    async with manager(redis_server.url, lease_ms=100) as locks:
        with pytest.raises(LeaseLost):
            async with locks.hold(KEY, 60_000) as lease:
                time.sleep(0.15)  # noqa: ASYNC251  # the loop is stalled, as the fault has it
                lease.ensure()
        await asyncio.sleep(0.01)  # a cancellation left over would end the test here
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
