"""What things cost, by count and not by time: a change that makes them dearer is seen at once."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from test_store_jobs import CLOSED_NOW, At, Published, attempt, put_all, store

from conftest import RedisServer, fresh_database
from peers import Peer
from plans import statements
from servers import Commit, Server, with_stores
from shops import own_stores
from solocron import LockNotAcquired
from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.ledger import RunKey
from solocron.locks.manager import LockManager
from solocron.storage.outbox import Outbox
from solocron.storage.runs import RunLedger
from solocron.stores.auto_close import AutoClose

KEY = "cron:store-auto-close"
TTL_MS = 60_000


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with LockManager(redis_server.url, clock=SystemClock()) as made:
        await made.is_locked("cron:warm")
        yield made


async def commands(redis: RedisServer, work: Callable[[], Awaitable[object]]) -> int:
    """How many scripts Redis was sent meanwhile, which is all it may be sent."""
    redis.cli("config", "resetstat")
    await work()
    stats = redis.cli("info", "commandstats")
    found = {
        name: int(count) for name, count in re.findall(r"cmdstat_(\w+).*?:calls=(\d+)", stats)
        if name not in ("config", "info")
    }  # fmt: skip
    scripts = found.get("evalsha", 0) + found.get("eval", 0)
    assert scripts or not found, found
    return scripts


async def test_a_lock_is_taken_and_freed_in_two_commands(
    locks: LockManager, redis_server: RedisServer
) -> None:
    async def cycles() -> None:
        for _ in range(10):
            assert await locks.acquire_lock(KEY, TTL_MS)
            assert await locks.release_lock(KEY)

    assert await commands(redis_server, cycles) == 20


async def test_a_loser_sends_one_command_and_none_where_the_holder_is_in_its_process(
    locks: LockManager, redis_server: RedisServer
) -> None:
    async with LockManager(redis_server.url, clock=SystemClock()) as other:
        await other.is_locked("cron:warm")
        for loser, wanted in ((other, 1), (locks, 0)):

            async def lose(loser: LockManager = loser) -> None:
                assert not await loser.acquire_lock(KEY, TTL_MS)

            async with locks.hold(KEY, TTL_MS):
                assert await commands(redis_server, lose) == wanted
                with pytest.raises(LockNotAcquired, match="is held by"):
                    async with loser.hold(KEY, TTL_MS):
                        pass
        assert await other.acquire_lock(KEY, TTL_MS)
        assert not await locks.acquire_lock(KEY, TTL_MS)


async def test_a_lock_lost_to_another_is_not_taken_for_held_here(
    redis_server: RedisServer,
) -> None:
    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        with pytest.raises(Exception, match="lost"):
            async with locks.hold(KEY, TTL_MS) as lease:
                redis_server.cli("del", KEY)
                async with asyncio.timeout(10):
                    await lease.lost.wait()
        assert await locks.acquire_lock(KEY, TTL_MS)


async def test_a_run_costs_two_commands_and_two_statements(
    locks: LockManager, redis_server: RedisServer, database_url: str
) -> None:
    async def body(run: object) -> None:
        pass

    job = Job(name="a-job", calendar=Calendar("* * * * * *"), body=body)
    async with fresh_database(database_url) as database:
        ledger = RunLedger(database)
        runner = Runner(
            locks=locks, ledger=ledger, clock=SystemClock(), owner="me", lease_ms=30_000
        )
        first = int(SystemClock().now_ms() // 1000) * 1000
        assert (await runner.run_tick(job, first)).state == "succeeded"

        async def run() -> None:
            assert (await runner.run_tick(job, first + 1000)).state == "succeeded"

        with statements(database) as sent:
            assert await commands(redis_server, run) == 2
    on_runs = [each for each, _ in sent.given if "job_runs" in each]
    assert len(on_runs) == 2, on_runs


async def test_runs_of_one_moment_are_begun_and_ended_in_one_statement_each(
    database_url: str,
) -> None:
    async with fresh_database(database_url) as database:
        ledger = RunLedger(database)
        for tick, earlier in ((1000, 0), (2000, 1)):
            with statements(database) as sent:
                begun = [
                    ledger.begin_next(f"job-{n}", tick, owner="me", now_ms=tick, lease_ms=60_000)
                    for n in range(100)
                ]
                assert all(await asyncio.gather(*begun)), earlier
                ended = [
                    ledger.finish(RunKey(f"job-{n}", tick, 1), now_ms=tick, duration_ms=1)
                    for n in range(100)
                ]
                assert all(await asyncio.gather(*ended))
            on_runs = [each for each, _ in sent.given if "job_runs" in each]
            assert len(on_runs) == 2, on_runs
        assert len(await ledger.states("job-99", 0, 9000)) == 2


async def test_a_hundred_ticks_at_once_take_few_statements(
    locks: LockManager, redis_server: RedisServer, database_url: str
) -> None:
    ran: list[str] = []

    async def body(run: Run) -> None:
        ran.append(run.job)

    jobs = [Job(name=f"j{n}", calendar=Calendar("* * * * * *"), body=body) for n in range(100)]
    async with fresh_database(database_url) as database:
        runner = Runner(
            locks=locks, ledger=RunLedger(database), clock=SystemClock(), owner="me",
            lease_ms=30_000,
        )  # fmt: skip
        tick = int(SystemClock().now_ms() // 1000) * 1000

        async def run() -> None:
            outcomes = await asyncio.gather(*(runner.run_tick(job, tick) for job in jobs))
            assert {each.state for each in outcomes} == {"succeeded"}

        with statements(database) as sent:
            assert await commands(redis_server, run) == 200
    assert len(ran) == 100
    on_runs = [each for each, _ in sent.given if "job_runs" in each]
    assert len(on_runs) <= 40, len(on_runs)


async def test_closing_costs_few_statements_a_batch_however_many_stores(
    database_url: str,
) -> None:
    async with fresh_database(database_url) as database:
        await put_all(database, (store(f"s{n:04}", CLOSED_NOW, is_open=True) for n in range(600)))
        async with attempt(database) as run:
            job = AutoClose(own_stores(database, ["mail"]), At(), Published(), batch=200)
            with statements(database) as sent:
                assert await job(run) == {"closed": 600}
    begun = [each for each in sent.sizes if each[0].startswith("BEGIN")]
    a_batch = 3 if database.dialect == "postgresql" else 5  # one of them is for the channels
    assert len(sent.sizes) - len(begun) <= 2 + 3 * a_batch, sent.sizes
    assert {size for _, size in sent.sizes} == {1}


async def test_publishing_costs_five_statements_a_batch(database_url: str) -> None:
    async with with_stores(database_url, "a") as database:
        rows = await Commit(database)("a", 500)
        with statements(database) as sent:
            await Outbox(database).mark_published(rows, 1)
    begun = [each for each in sent.sizes if each[0].startswith("BEGIN")]
    assert len(sent.sizes) - len(begun) <= 5, sent.sizes
    assert {size for _, size in sent.sizes} == {1}


async def test_a_subscription_keeps_few_bytes(redis_server: RedisServer, sqlite_url: str) -> None:
    count = 300
    async with (
        with_stores(sqlite_url, "a") as database,
        Server(database, redis_server.url).running() as one,
    ):
        await one.up()
        peers = [Peer() for _ in range(count + 1)]
        await one.hub.subscribe(peers[0].client, {"a": None})
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for peer in peers[1:]:
                await one.hub.subscribe(peer.client, {"a": None})
            for peer in peers:
                peer.wire.writes.clear()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (after - before) / count < 2000, (after - before) / count
