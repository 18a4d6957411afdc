"""The run ledger and its fence, on both databases."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select

from solocron.errors import ConfigError, StaleAttempt, StorageUnavailable
from solocron.ledger import RunKey, Verdict
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from solocron.storage.tables import metadata, stores

TICK = 1_800_000_000_000


async def begin(ledger: RunLedger, owner: str, lease_ms: int = 60_000, **more: Any) -> Verdict:
    return await ledger.begin(
        "job", TICK, owner=owner, now_ms=TICK, lease_ms=lease_ms, max_attempts=3, **more
    )


async def test_migrations_and_tables_agree(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection)
        return [
            each
            for each in compare_metadata(context, metadata)
            if "alembic_version" not in str(each)
        ]

    assert await database.is_ready()
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_workers_that_migrate_together_agree(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    await asyncio.gather(*(each.migrate() for each in databases))
    assert all([await each.is_ready() for each in databases])
    for each in databases:
        await each.close()


async def test_one_of_many_servers_gets_the_tick(database: Database) -> None:
    ledger = RunLedger(database)
    verdicts = await asyncio.gather(*(begin(ledger, f"server-{n}") for n in range(12)))
    assert sorted(each.kind for each in verdicts) == ["held"] * 11 + ["run"]
    assert await ledger.finish(RunKey("job", TICK, 1), now_ms=TICK, duration_ms=1, result="1")
    assert (await begin(ledger, "late")).kind == "done"
    assert [row["state"] for row in await ledger.history("job")] == ["succeeded"]


async def test_a_stale_owner_writes_nothing(database: Database) -> None:
    ledger = RunLedger(database)
    first = await begin(ledger, "paused", lease_ms=0)
    second = await begin(ledger, "survivor")
    assert (first.attempt, second.attempt, second.owner) == (1, 2, "paused")
    with pytest.raises(StaleAttempt):
        async with ledger.fenced(RunKey("job", TICK, 1)) as connection:
            await connection.execute(insert(stores).values(id="never"))
    assert not await ledger.finish(RunKey("job", TICK, 1), now_ms=TICK, duration_ms=1)
    assert not await ledger.heartbeat(RunKey("job", TICK, 1), 1000)
    async with ledger.fenced(RunKey("job", TICK, 2)) as connection:
        assert (await connection.execute(select(stores))).all() == []


async def test_a_run_that_kills_its_owners_is_given_up(database: Database) -> None:
    ledger = RunLedger(database)
    kinds = [(await begin(ledger, "doomed", lease_ms=0)).kind for _ in range(4)]
    assert kinds == ["run", "run", "run", "done"]
    assert [row["state"] for row in await ledger.history()] == ["failed"]


async def test_a_handed_over_run_is_taken_at_once(database: Database) -> None:
    ledger = RunLedger(database)
    await begin(ledger, "leaving")
    await ledger.hand_over(RunKey("job", TICK, 1))
    assert await ledger.expired(["job"], TICK) == [("job", TICK, "schedule")]
    assert (await begin(ledger, "next")).attempt == 2


async def test_a_missing_database_is_unavailable() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StorageUnavailable):
        await RunLedger(database).latest_ticks(["job"])
    assert not await database.is_ready()
    await database.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://root:secret@h/d", ""])
def test_a_bad_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL") as caught:
        Database(url)
    assert "secret" not in str(caught.value)


async def test_a_cancelled_connect_leaves_no_connection(sqlite_url: str) -> None:
    async def use(database: Database) -> None:
        async with database.connect():
            pass

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(40):
            database = Database(sqlite_url)
            task = asyncio.create_task(use(database))
            await asyncio.sleep(0.0003 * (number % 8))  # cancelled at any stage of connecting
            task.cancel()
            await asyncio.wait([task])
            await database.close()
            del database, task
            gc.collect()
    assert [str(each.message) for each in caught if each.category is ResourceWarning] == []


async def test_a_run_by_hand_keeps_its_parameters_through_a_takeover(database: Database) -> None:
    ledger = RunLedger(database)
    asked: dict[str, Any] = {"origin": "manual", "params": '{"day": 1}', "asked_by": "ann@host"}
    first = await begin(ledger, "silent", lease_ms=0, **asked)
    taken = await begin(ledger, "survivor", origin="manual", params='{"day": 2}', asked_by="bob")
    assert (first.params, taken.attempt, taken.params) == ('{"day": 1}', 2, '{"day": 1}')
    (row,) = await ledger.history()
    assert (row["asked_by"], row["params"], row["origin"]) == ("ann@host", '{"day": 1}', "manual")


async def test_who_wants_a_run_of_its_own_takes_no_other_over(database: Database) -> None:
    ledger = RunLedger(database)
    await begin(ledger, "silent", lease_ms=0)
    assert await begin(ledger, "other", fresh=True) == Verdict("held", 1, "silent")


async def test_a_failed_run_is_opened_anew_for_who_asks_for_it(database: Database) -> None:
    ledger = RunLedger(database)
    await begin(ledger, "one")
    key = RunKey("job", TICK, 1)
    assert await ledger.finish(key, now_ms=TICK, duration_ms=1, error="no", progress='{"done": 1}')
    assert (await begin(ledger, "two")).kind == "done"
    wanted = [begin(ledger, f"s{n}", again=True, origin="backfill") for n in range(8)]
    verdicts = await asyncio.gather(*wanted)
    assert sorted((each.kind, each.attempt) for each in verdicts) == [("held", 2)] * 7 + [
        ("run", 2)
    ]
    (row,) = await ledger.history()
    told = (row["state"], row["origin"], row["error"], row["finished_at"], row["progress"])
    assert told == ("running", "backfill", None, None, '{"done": 1}')
    assert not await ledger.finish(key, now_ms=TICK, duration_ms=1)
    assert await ledger.finish(RunKey("job", TICK, 2), now_ms=TICK, duration_ms=1)
    assert (await begin(ledger, "three", again=True)).kind == "done"
    assert await ledger.states("job", TICK, TICK) == {TICK: "succeeded"}


async def test_a_heartbeat_tells_of_progress_and_forgets_none(database: Database) -> None:
    ledger = RunLedger(database)
    await begin(ledger, "one")
    key = RunKey("job", TICK, 1)
    assert await ledger.heartbeat(key, 1000, progress='{"done": 3}')
    assert await ledger.heartbeat(key, 1000)
    (row,) = await ledger.history()
    assert row["progress"] == '{"done": 3}'
