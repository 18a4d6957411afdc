"""PostgreSQL refuses a transaction (deadlock, serialization failure), or every connection is in
use: runs are tried again, and none is taken from its owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from conftest import RedisServer, execute
from run_world import World, world_at, write
from solocron.clock import SystemClock
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.ledger import RunKey
from solocron.locks.manager import LockManager

TICK = 1_800_000_000_000


@pytest.fixture
async def world(redis_server: RedisServer, postgres_url: str) -> AsyncIterator[World]:
    async with world_at(postgres_url, redis_server.url) as world:
        yield world


async def serializable(url: str) -> None:
    """From its next connection on, as some administrators set it for all their databases."""
    name = url.partition("?")[0].rpartition("/")[2]
    change = f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
    await asyncio.to_thread(execute, url, change)


async def test_the_victim_of_a_deadlock_is_tried_again(world: World) -> None:
    both = asyncio.Barrier(2)
    add = text("UPDATE accounts SET n = n + 1 WHERE id = :id")
    async with world.direct.begin() as connection:
        await connection.execute(text("CREATE TABLE accounts (id INT PRIMARY KEY, n INT)"))
        await connection.execute(text("INSERT INTO accounts VALUES (1, 0), (2, 0)"))

    async def run(name: str, order: tuple[int, int]) -> Outcome:
        async def body(run: Run) -> None:
            async with run.transaction() as connection:
                await connection.execute(add, {"id": order[0]})
                if run.attempt == 1:
                    await both.wait()
                await connection.execute(add, {"id": order[1]})

        return await world.run(body, name=name)

    outcomes = await asyncio.gather(run("up", (1, 2)), run("down", (2, 1)))
    assert [each.state for each in outcomes] == ["succeeded"] * 2
    assert sorted(each.attempt for each in outcomes) == [1, 2]
    async with world.direct.connect() as connection:
        counts = (await connection.execute(text("SELECT n FROM accounts"))).scalars()
        assert list(counts) == [2, 2]


async def test_serialization_failures_are_tried_again(world: World, postgres_url: str) -> None:
    """Two runs that each read what the other writes: one has to go again."""
    await serializable(postgres_url)
    both = asyncio.Barrier(2)
    count = text("SELECT count(*) FROM effects")

    async def run(name: str) -> Outcome:
        async def body(run: Run) -> None:
            async with run.transaction() as connection:
                found = (await connection.execute(count)).scalar_one()
                if run.attempt == 1:
                    await both.wait()
                await write(connection, run, f"saw {found}")

        return await world.run(body, name=name)

    outcomes = await asyncio.gather(run("a"), run("b"))
    assert [each.state for each in outcomes] == ["succeeded"] * 2
    assert sorted(each.attempt for each in outcomes) == [1, 2]
    assert sorted(await world.written()) == ["saw 0", "saw 1"]


async def test_the_ledger_admits_one_of_many_that_cannot_be_serialized(
    world: World, postgres_url: str
) -> None:
    await serializable(postgres_url)
    begun = await asyncio.gather(
        *(
            world.ledger.begin(
                "one", TICK, owner=f"w{n}", now_ms=TICK, lease_ms=60_000, max_attempts=3
            )
            for n in range(8)
        )
    )
    assert sorted(each.kind for each in begun) == ["held"] * 7 + ["run"]
    key = RunKey("one", TICK, 1)
    beats = (world.ledger.heartbeat(key, 60_000) for _ in range(4))
    ends = (world.ledger.finish(key, now_ms=TICK, duration_ms=1) for _ in range(4))
    done = await asyncio.gather(*beats, *ends, return_exceptions=True)
    assert done[4:] == [True] * 4


async def test_bodies_that_hold_every_connection_take_no_run_from_another(
    own_redis: RedisServer, world: World
) -> None:
    """Without Redis a heartbeat is a run's only lease."""
    own_redis.stop()

    async def busy(run: Run) -> None:
        for _ in range(3):
            async with run.transaction() as connection:
                await asyncio.sleep(1.8)
                await write(connection, run)

    async def quiet(run: Run) -> None:
        await asyncio.sleep(7)

    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.2) as locks:
        world.locks = locks
        jobs = [(quiet, f"quiet-{n}") for n in range(3)] + [(busy, f"busy-{n}") for n in range(12)]
        outcomes = await asyncio.gather(
            *(world.run(body, lease_ms=4000, name=name) for body, name in jobs)
        )
    assert [(each.state, each.attempt) for each in outcomes] == [("succeeded", 1)] * 15
    assert len(await world.written()) == 36


async def test_a_heartbeat_does_not_wait_for_the_lock_of_its_own_run(world: World) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    found: list[int] = []

    async def body(run: Run) -> None:
        async with run.transaction():
            await asyncio.sleep(0.5)  # one is due after 0.3 s
            async with world.direct.connect() as connection:
                found.append((await connection.execute(waiting)).scalar_one())

    assert (await world.run(body, lease_ms=900)).state == "succeeded"
    assert found == [0]


async def test_bodies_leave_two_connections_to_the_ledger(world: World) -> None:
    most = now = 0

    async def body(run: Run) -> None:
        nonlocal most, now
        async with run.transaction():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.5)
            now -= 1

    outcomes = await asyncio.gather(*(world.run(body, name=f"job-{n}") for n in range(12)))
    assert [each.state for each in outcomes] == ["succeeded"] * 12
    assert most == 8
