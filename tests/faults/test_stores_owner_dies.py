"""The owner of an auto-close dies, or is frozen, between two batches of stores."""

from __future__ import annotations

import asyncio
import signal

import pytest

from conftest import RedisServer
from shops import closings, open_shops, runs, still_open
from solocron.storage.engine import Database
from workers import Worker, prepare, until, wall_ms

SHOPS = 4000
LEASE_S = 2.0
SWEEP_S = 0.5
JOB = "store-auto-close"


async def worker(redis: RedisServer, database: str) -> Worker:
    return await Worker.start(
        redis=redis.url, database=database, lease=LEASE_S, sweep=SWEEP_S, batch=20,
        store_auto_close_schedule="*/10 * * * * *",
    )  # fmt: skip


async def caught_in_mid_run(database: Database, owner: Worker) -> int:
    """Freeze the owner once it has closed some of the stores; how many are open then."""

    async def some_closed() -> bool:
        return 0 < await still_open(database) < SHOPS

    async with asyncio.timeout(40):
        while not await some_closed():
            await asyncio.sleep(0.002)
    owner.signal(signal.SIGSTOP)
    left = await still_open(database)
    assert 0 < left < SHOPS, "the run was over before it could be caught"
    return left


# Not SQLite and frozen: a process stopped inside a transaction holds SQLite's one write lock, and
# no server ends its session.
@pytest.fixture(
    params=[("sqlite_url", "killed"), ("postgres_url", "killed"), ("postgres_url", "frozen")],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A database's URL and what happens to the owner."""
    name, fault = request.param
    return request.getfixturevalue(name), fault


async def test_stores_and_notifications_are_each_exactly_one_after_a_takeover(
    own_redis: RedisServer, case: tuple[str, str]
) -> None:
    database_url, fault = case
    database = await prepare(database_url)
    shops = await open_shops(database, SHOPS)
    owner = await worker(own_redis, database_url)
    left = await caught_in_mid_run(database, owner)
    began = wall_ms()
    if fault == "killed":
        owner.signal(signal.SIGKILL)
    survivor = await worker(own_redis, database_url)
    try:

        async def taken_over() -> bool:
            return await still_open(database) < left

        async def all_closed() -> bool:
            return await still_open(database) == 0

        await until(taken_over)
        # Freezing inside a transaction adds the time PostgreSQL lets it stand idle (the lease).
        waited_s = (wall_ms() - began) / 1000
        assert waited_s < LEASE_S + 1.2 * SWEEP_S + 1.5 + (LEASE_S if fault == "frozen" else 0)
        await until(all_closed)
        told = await closings(database)
        if fault == "frozen":
            owner.signal(signal.SIGCONT)
            await owner.stop()  # it wakes, finds that it lost the run, and leaves
            assert await closings(database) == told
    finally:
        await asyncio.gather(owner.stop(), survivor.stop())
    assert told == [(shop, 1) for shop in shops]
    first = (await runs(database, JOB))[0]
    assert first[1:] == (2, "succeeded")
    await database.close()
