"""PostgreSQL is cut off in mid-run, or a commit's reply is lost. Whatever happened, the run's
effects are there once, and nothing is half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from sqlalchemy import text

from conftest import RedisServer
from run_world import World, latest, world_at, write
from shops import closings, open_shops, own_stores, still_open
from solocron.clock import SystemClock
from solocron.cron.run import Run
from solocron.errors import StaleAttempt, StorageUnavailable
from solocron.storage.engine import POOL_SIZE
from solocron.storage.outbox import Notification
from solocron.storage.runs import RunLedger
from solocron.stores.auto_close import AutoClose
from workers import until

TICK = 1_800_000_000_000


@pytest.fixture
async def world(redis_server: RedisServer, postgres_url: str) -> AsyncIterator[World]:
    async with world_at(postgres_url, redis_server.url) as world:
        yield world


# -- the link is cut -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminated", "cut"])
async def test_a_session_that_ends_after_its_answers_were_read_breaks_nothing(
    world: World, how: str
) -> None:
    for _ in range(POOL_SIZE + 1):  # and each gives back its place in the pool
        async with world.database.connect() as connection:
            query = text("SELECT pg_backend_pid()")
            session = (await connection.execute(query)).scalar_one()
            if how == "cut":
                await world.proxy.cut()
            else:
                async with world.direct.begin() as other:
                    end = text("SELECT pg_terminate_backend(:session)")
                    await other.execute(end, {"session": session})
            driver: Any = (await connection.get_raw_connection()).driver_connection
            async with asyncio.timeout(10):
                while not driver.is_closed():
                    await asyncio.sleep(0.01)
    async with world.database.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


@pytest.mark.parametrize("cuts", [1, 2])
async def test_a_run_cut_in_mid_transaction_is_tried_again(world: World, cuts: int) -> None:
    async def body(run: Run) -> None:
        async with run.transaction() as connection:
            await write(connection, run, f"first of {run.attempt}")
            if run.attempt <= cuts:
                await world.proxy.cut()
            await write(connection, run, f"second of {run.attempt}")

    outcome = await world.run(body)
    assert (outcome.state, outcome.attempt) == ("succeeded", cuts + 1)
    assert await world.written() == [f"first of {cuts + 1}", f"second of {cuts + 1}"]
    assert await world.row() == (cuts + 1, "succeeded")


async def test_a_run_whose_attempts_are_all_cut_fails_and_leaves_nothing(world: World) -> None:
    async def body(run: Run) -> None:
        async with run.transaction() as connection:
            await write(connection, run)
            await world.proxy.cut()

    outcome = await world.run(body, attempts=2)
    assert (outcome.state, outcome.attempt) == ("failed", 2)
    assert "StorageUnavailable" in (outcome.reason or "")
    assert await world.written() == []
    assert await world.row() == (2, "failed")


# A word of a statement, or of the COMMIT behind it: which reply is lost, and the link cut.
STATEMENTS = {
    "begin": b"INSERT INTO job_runs",
    "fence": b"UPDATE job_runs SET stamp",
    "finish": b"UPDATE job_runs SET state",
    "heartbeat": b"UPDATE job_runs SET lease_until",
}


@pytest.mark.parametrize("word", STATEMENTS.values(), ids=STATEMENTS.keys())
async def test_the_ledger_survives_a_cut_within_each_of_its_transactions(
    world: World, word: bytes
) -> None:
    async def body(run: Run) -> None:
        if word == STATEMENTS["heartbeat"]:

            async def beaten() -> bool:
                return world.proxy.lost == 1

            await until(beaten, 10)
        async with run.transaction() as connection:
            await write(connection, run)

    world.proxy.lose_reply_to(word)
    outcome = await world.run(body, lease_ms=1500)
    assert world.proxy.lost == 1
    assert (outcome.state, outcome.attempt) == (
        "succeeded",
        2 if word == STATEMENTS["fence"] else 1,
    )
    assert await world.written() == ["w"]
    assert (await world.row())[1] == "succeeded"


@pytest.mark.parametrize("word", [b"UPDATE job_runs SET lease_until", b"COMMIT"])
async def test_a_run_is_handed_over_through_a_cut(world: World, word: bytes) -> None:
    running = asyncio.Event()

    async def stuck(run: Run) -> None:
        running.set()
        await asyncio.Event().wait()

    async def quick(run: Run) -> None: ...

    leaving = asyncio.create_task(world.run(stuck))
    await running.wait()
    world.proxy.lose_reply_to(word)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert world.proxy.lost == 1
    outcome = await world.run(quick)
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)


# -- a commit's reply is lost --------------------------------------------------------------


async def test_a_begin_whose_reply_is_lost_goes_on_at_once(world: World) -> None:
    async def body(run: Run) -> None:
        async with run.transaction() as connection:
            await write(connection, run)

    world.proxy.lose_reply_to(b"COMMIT")
    outcome = await world.run(body, attempts=1)
    assert (world.proxy.lost, outcome.state, outcome.attempt) == (1, "succeeded", 1)
    assert await world.written() == ["w"]


async def test_a_takeover_whose_reply_is_lost_goes_on_at_once(world: World) -> None:
    async def body(run: Run) -> None: ...

    await RunLedger(world.direct).begin(
        "one", latest(), owner="w", now_ms=TICK, lease_ms=0, max_attempts=3
    )
    world.proxy.lose_reply_to(b"COMMIT")
    outcome = await world.run(body)
    assert (world.proxy.lost, outcome.state, outcome.attempt) == (1, "succeeded", 2)


async def test_no_other_claim_of_the_same_owner_takes_the_row_for_its_own(world: World) -> None:
    async def begin() -> str:
        verdict = await world.ledger.begin(
            "one", TICK, owner="w", now_ms=TICK, lease_ms=60_000, max_attempts=3
        )
        return verdict.kind

    world.proxy.lose_reply_to(b"COMMIT")
    kinds = await asyncio.gather(*(begin() for _ in range(6)))
    assert world.proxy.lost == 1
    assert sorted(kinds) == ["held"] * 5 + ["run"]


async def test_effects_whose_reply_is_lost_are_written_once(world: World) -> None:
    async def body(run: Run) -> Mapping[str, int]:
        async with run.transaction() as connection:
            await write(connection, run)
            world.proxy.lose_reply_to(b"COMMIT")
        return {"effects": 1}

    outcome = await world.run(body)
    assert (world.proxy.lost, outcome.state, outcome.attempt) == (1, "succeeded", 1)
    assert outcome.counts == {"effects": 1}
    assert await world.written() == ["w"]


async def test_effects_are_known_when_the_database_is_back(world: World) -> None:
    """However long it is away: the lease, not a number of tries, ends the wait."""

    async def body(run: Run) -> None:
        async with run.transaction() as connection:
            await write(connection, run)
            world.proxy.lose_reply_to(b"COMMIT")
            outage.append(asyncio.create_task(away()))

    async def away() -> None:
        while not world.proxy.lost:
            await asyncio.sleep(0)  # down before the next connection is made
        await world.proxy.down()
        await asyncio.sleep(6)
        await world.proxy.up()

    outage: list[asyncio.Task[None]] = []
    outcome = await world.run(body, lease_ms=6000)
    await asyncio.gather(*outage)
    assert (outcome.state, outcome.attempt) == ("succeeded", 1)
    assert await world.written() == ["w"]


async def test_effects_that_a_takeover_overtook_are_no_success(world: World) -> None:
    """Whether they were committed is then the successor's to see, not this attempt's."""

    async def body(run: Run) -> None:
        with pytest.raises(StaleAttempt):
            async with run.transaction() as connection:
                await write(connection, run)
                world.proxy.lose_reply_to(b"COMMIT")
                overtaken.append(asyncio.create_task(overtake()))
        raised.set()

    async def overtake() -> None:
        while not world.proxy.lost:
            await asyncio.sleep(0)
        await world.proxy.down()
        other = RunLedger(world.direct)

        async def begun() -> bool:
            verdict = await other.begin(
                "one", tick, owner="other", now_ms=TICK, lease_ms=60_000, max_attempts=3
            )
            return verdict.kind == "run"

        await until(begun)
        await world.proxy.up()

    tick, overtaken, raised = latest(), list[asyncio.Task[None]](), asyncio.Event()
    outcome = await world.run(body, lease_ms=1500)
    await asyncio.gather(*overtaken)
    assert (outcome.state, outcome.attempt, raised.is_set()) == ("lost", 1, True)
    assert await world.row() == (2, "running")


async def test_a_lost_transaction_beside_a_committed_one_is_told_apart(world: World) -> None:
    """Two transactions of one run, of which one never reached its commit."""
    told: list[str] = []

    async def one(run: Run, what: str) -> None:
        try:
            async with run.transaction() as connection:
                await write(connection, run, what)
                if what == "cut":
                    await world.proxy.cut()
        except StorageUnavailable:
            told.append(what)

    async def body(run: Run) -> None:
        await asyncio.gather(one(run, "cut"), one(run, "kept"))

    outcome = await world.run(body)
    assert (outcome.state, outcome.attempt) == ("succeeded", 1)
    assert await world.written() == [each for each in ("cut", "kept") if each not in told]
    assert "cut" in told


async def test_a_next_attempt_whose_reply_is_lost_is_begun_once(world: World) -> None:
    attempts: list[int] = []

    async def body(run: Run) -> None:
        attempts.append(run.attempt)
        if run.attempt == 1:
            world.proxy.lose_reply_to(b"COMMIT")
            raise ValueError("again")

    outcome = await world.run(body)
    assert (world.proxy.lost, outcome.state, attempts) == (1, "succeeded", [1, 2])


async def test_an_end_whose_reply_is_lost_is_written_once(world: World) -> None:
    async def body(run: Run) -> Mapping[str, int]:
        world.proxy.lose_reply_to(b"COMMIT")
        return {"n": 1}

    outcome = await world.run(body)
    assert (world.proxy.lost, outcome.state, outcome.attempt) == (1, "succeeded", 1)
    assert await world.row() == (1, "succeeded")


async def test_each_batch_of_stores_whose_reply_is_lost_is_told_of_once(world: World) -> None:
    shops = await open_shops(world.direct, 25)
    told: list[Notification] = []

    def publish(rows: Any) -> None:
        told.extend(rows)
        world.proxy.lose_reply_to(b"COMMIT")

    close = AutoClose(own_stores(world.database), SystemClock(), publish, batch=10)
    outcome = await world.run(close)
    assert (outcome.state, outcome.attempt, outcome.counts) == ("succeeded", 1, {"closed": 25})
    assert world.proxy.lost == 3
    assert sorted((each.store_id, each.seq) for each in told) == [(shop, 1) for shop in shops]
    assert await closings(world.direct) == [(shop, 1) for shop in shops]
    assert await still_open(world.direct) == 0
