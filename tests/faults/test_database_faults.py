"""PostgreSQL fails in mid-run: a link is cut, a commit's reply is lost, a transaction is refused.
Whatever happened, the run's effects are there once, and nothing is half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from conftest import RedisServer, execute
from proxy import Proxy
from shops import closings, open_shops, still_open
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.run import Run
from solocron.cron.runner import Outcome, Runner
from solocron.cron.ticks import Calendar
from solocron.errors import StorageUnavailable
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.outbox import Notification
from solocron.storage.runs import RunKey, RunLedger
from solocron.stores.auto_close import AutoClose
from solocron.stores.repository import StoreRepository
from workers import effects, prepare, until

CALENDAR = Calendar("* * * * *")
TICK = 1_800_000_000_000


def job(body: Body, name: str = "one", **options: Any) -> Job:
    return Job(name=name, calendar=CALENDAR, body=body, backoff_ms=1, **options)


def latest() -> int:
    tick = CALENDAR.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


async def write(connection: AsyncConnection, run: Run, what: str = "w") -> None:
    row = {"tick": run.tick, "what": what}
    await connection.execute(text("INSERT INTO effects (tick, worker) VALUES (:tick, :what)"), row)


@dataclass
class World:
    """A server whose database is behind `proxy`; `direct` is the same database without it."""

    proxy: Proxy
    direct: Database
    database: Database
    ledger: RunLedger
    locks: LockManager

    def runner(self, lease_ms: int = 5000, database: Database | None = None) -> Runner:
        ledger = RunLedger(database) if database else self.ledger
        return Runner(
            locks=self.locks, ledger=ledger, clock=SystemClock(), owner="w", lease_ms=lease_ms
        )

    async def run(self, body: Body, lease_ms: int = 5000, **options: Any) -> Outcome:
        async with asyncio.timeout(60):
            return await self.runner(lease_ms).run_tick(job(body, **options), latest())

    async def written(self) -> list[str]:
        return [what for _, what in await effects(self.direct)]

    async def row(self) -> tuple[int, str]:
        (row,) = await RunLedger(self.direct).history()
        return row["attempt"], row["state"]


@pytest.fixture
async def world(redis_server: RedisServer, postgres_url: str) -> AsyncIterator[World]:
    direct = await prepare(postgres_url)
    async with (
        Proxy.to_postgres(postgres_url) as proxy,
        LockManager(redis_server.url, clock=SystemClock()) as locks,
    ):
        database = Database(proxy.postgres_url(postgres_url))
        yield World(proxy, direct, database, RunLedger(database), locks)
        await database.close()
    await direct.close()


# -- the link is cut -----------------------------------------------------------------------


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
    outcome = await world.run(body, lease_ms=3000)
    await asyncio.gather(*outage)
    assert (outcome.state, outcome.attempt) == ("succeeded", 1)
    assert await world.written() == ["w"]


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

    close = AutoClose(StoreRepository(world.database), SystemClock(), publish, batch=10)
    outcome = await world.run(close)
    assert (outcome.state, outcome.attempt, outcome.counts) == ("succeeded", 1, {"closed": 25})
    assert world.proxy.lost == 3
    assert sorted((each.store_id, each.seq) for each in told) == [(shop, 1) for shop in shops]
    assert await closings(world.direct) == [(shop, 1) for shop in shops]
    assert await still_open(world.direct) == 0


# -- PostgreSQL refuses --------------------------------------------------------------------


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
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    await asyncio.to_thread(
        execute, postgres_url,
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'",
    )  # fmt: skip
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
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    await asyncio.to_thread(
        execute, postgres_url,
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'",
    )  # fmt: skip
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


# -- every connection is in use ------------------------------------------------------------


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
