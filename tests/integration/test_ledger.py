"""The run ledger, wherever it is kept, and its fence on both databases."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, insert, select

import solocron
from conftest import RedisServer
from ledgers import NONE, ledger_at
from solocron.errors import ConfigError, StaleAttempt, StorageUnavailable
from solocron.ledger import Ledger, RunKey, Verdict
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from solocron.storage.tables import metadata, stores

TICK = 1_800_000_000_000


@pytest.fixture(params=["sqlite_url", "postgres_url", NONE])
def where(request: pytest.FixtureRequest) -> str:
    """The URL of a database of either kind, or of none."""
    return NONE if request.param == NONE else str(request.getfixturevalue(request.param))


@pytest.fixture
async def ledger(where: str, redis_server: RedisServer) -> AsyncIterator[Ledger]:
    """A ledger of each kind."""
    async with ledger_at(where, redis_server.url) as ledger:
        yield ledger


async def begin(ledger: Ledger, owner: str, lease_ms: int = 60_000, **more: Any) -> Verdict:
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


STARTS = """
import asyncio, logging
logging.basicConfig(level="INFO", format="%(name)s %(message)s")
from solocron.storage.engine import Database

async def start():
    database = Database("sqlite:///it.db")
    await database.migrate()
    await database.check()
    await database.close()

asyncio.run(start())
logging.getLogger("alembic.runtime.plugins").info("of the host's own")
"""


def test_a_hosts_log_has_of_alembic_which_migration_is_run_and_nothing_else(tmp_path: Path) -> None:
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", STARTS], cwd=tmp_path, capture_output=True, text=True,
            check=True, env={**os.environ, "PYTHONPATH": str(Path(solocron.__file__).parents[1])},
        )  # fmt: skip
        said.append(done.stderr.splitlines())
    first, again = said
    assert again == ["alembic.runtime.plugins of the host's own"]
    told = {each.partition(" -> ")[0].rstrip("0123456789 ") for each in first if "alembic" in each}
    assert told == {"alembic.runtime.migration Running upgrade", *again}


async def migrated_until(url: str, turn: int) -> bool:
    """Migrate, and cancel that at its statement number `turn`; whether it has so many."""
    database, left = Database(url), turn
    migrating = asyncio.create_task(database.migrate())

    def cancel(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            migrating.cancel()

    event.listen(database._engine.sync_engine, "before_cursor_execute", cancel)
    await asyncio.wait([migrating])
    await database.close()
    assert left > 0 or migrating.cancelled(), turn
    if left > 0:
        migrating.result()
    return left <= 0


async def test_a_migration_that_is_cancelled_at_any_statement_is_cancelled(
    sqlite_url: str,
) -> None:
    turn = 1
    while await migrated_until(f"{sqlite_url}.{turn}", turn):
        turn += 1
    assert turn > 50


async def test_workers_that_migrate_together_agree(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    await asyncio.gather(*(each.migrate() for each in databases))
    assert all([await each.is_ready() for each in databases])
    for each in databases:
        await each.close()


async def test_one_of_many_servers_gets_the_tick(ledger: Ledger) -> None:
    verdicts = await asyncio.gather(*(begin(ledger, f"server-{n}") for n in range(12)))
    assert sorted(each.kind for each in verdicts) == ["held"] * 11 + ["run"]
    assert await ledger.finish(RunKey("job", TICK, 1), now_ms=TICK, duration_ms=1, result="1")
    assert (await begin(ledger, "late")).kind == "done"
    assert [row["state"] for row in await ledger.history("job")] == ["succeeded"]


async def test_a_stale_owner_ends_nothing(ledger: Ledger) -> None:
    first = await begin(ledger, "paused", lease_ms=0)
    second = await begin(ledger, "survivor")
    stale = RunKey("job", TICK, 1)
    assert (first.attempt, second.attempt, second.owner) == (1, 2, "paused")
    assert not await ledger.finish(stale, now_ms=TICK, duration_ms=1)
    assert not await ledger.heartbeat(stale, 1000)
    assert not await ledger.retry(stale, owner="paused", lease_ms=1000, fallback=False)
    await ledger.hand_over(stale)
    assert (await begin(ledger, "third")).kind == "held"
    assert await ledger.finish(RunKey("job", TICK, 2), now_ms=TICK, duration_ms=1, error="e" * 9999)
    (row,) = await ledger.history("job", tick=TICK)
    assert (row["attempt"], row["state"], row["owner"]) == (2, "failed", "survivor")
    assert len(row["error"]) == 2000


async def test_what_is_told_twice_is_told_once(ledger: Ledger) -> None:
    """A reply may be lost, and the question asked again."""
    await begin(ledger, "w")
    first, second = RunKey("job", TICK, 1), RunKey("job", TICK, 2)
    assert await ledger.retry(first, owner="w", lease_ms=60_000, fallback=False)
    assert not await ledger.retry(first, owner="w", lease_ms=60_000, fallback=False)
    for _ in range(2):
        assert await ledger.finish(second, now_ms=TICK + 5, duration_ms=5, result='{"n": 1}')
    assert not await ledger.finish(second, now_ms=TICK, duration_ms=1, error="no")
    (row,) = await ledger.history("job")
    assert (row["state"], row["finished_at"], row["result"]) == ("succeeded", TICK + 5, '{"n": 1}')


async def test_a_run_given_back_at_a_stop_uses_up_no_attempt(ledger: Ledger) -> None:
    for attempt in range(1, 6):
        assert (await begin(ledger, "w")).attempt == attempt
        await ledger.hand_over(RunKey("job", TICK, attempt), stopping=True)


async def test_unfinished_ticks_are_named_and_those_too_old_closed(ledger: Ledger) -> None:
    async def start(tick: int, origin: str = "schedule", lease_ms: int = 0) -> None:
        await ledger.begin(
            "job", tick, owner="w", now_ms=tick, lease_ms=lease_ms, max_attempts=3, origin=origin
        )

    for n in range(4):
        await start(TICK + n)
    await start(TICK - 1, lease_ms=60_000)
    await start(TICK + 2_000, origin="manual")
    await ledger.finish(RunKey("job", TICK + 2, 1), now_ms=TICK, duration_ms=1)
    found = await ledger.unfinished("job", since_ms=TICK + 1, before_ms=TICK + 9, now_ms=TICK)
    assert found == [TICK + 1, TICK + 3]
    assert sorted(await ledger.expired(["job", "other"], TICK)) == [
        ("job", TICK + 1, "schedule"), ("job", TICK + 3, "schedule"),
        ("job", TICK + 2000, "manual"),
    ]  # fmt: skip
    states = {row["tick"] - TICK: row["state"] for row in await ledger.history("job")}
    assert states == {
        -1: "running", 0: "failed", 1: "running", 2: "succeeded", 3: "running", 2000: "running",
    }  # fmt: skip
    assert await ledger.latest_ticks(["job", "other"]) == {"job": TICK + 3}
    assert [row["tick"] for row in await ledger.history("job", 2)] == [TICK + 2000, TICK + 3]


async def test_a_stale_owner_writes_nothing(database: Database) -> None:
    ledger = RunLedger(database)
    await begin(ledger, "paused", lease_ms=0)
    await begin(ledger, "survivor")
    with pytest.raises(StaleAttempt):
        async with ledger.fenced(RunKey("job", TICK, 1)) as connection:
            await connection.execute(insert(stores).values(id="never"))
    async with ledger.fenced(RunKey("job", TICK, 2)) as connection:
        assert (await connection.execute(select(stores))).all() == []


async def test_a_run_that_kills_its_owners_is_given_up(ledger: Ledger) -> None:
    kinds = [(await begin(ledger, "doomed", lease_ms=0)).kind for _ in range(4)]
    assert kinds == ["run", "run", "run", "done"]
    assert [row["state"] for row in await ledger.history("job")] == ["failed"]


async def test_a_handed_over_run_is_taken_at_once(ledger: Ledger) -> None:
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


async def test_a_run_by_hand_keeps_its_parameters_through_a_takeover(ledger: Ledger) -> None:
    asked: dict[str, Any] = {"origin": "manual", "params": '{"day": 1}', "asked_by": "ann@host"}
    first = await begin(ledger, "silent", lease_ms=0, **asked)
    taken = await begin(ledger, "survivor", origin="manual", params='{"day": 2}', asked_by="bob")
    assert (first.params, taken.attempt, taken.params) == ('{"day": 1}', 2, '{"day": 1}')
    (row,) = await ledger.history("job")
    assert (row["asked_by"], row["params"], row["origin"]) == ("ann@host", '{"day": 1}', "manual")


async def test_who_wants_a_run_of_its_own_takes_no_other_over(ledger: Ledger) -> None:
    await begin(ledger, "silent", lease_ms=0)
    assert await begin(ledger, "other", fresh=True) == Verdict("held", 1, "silent")


async def test_a_failed_run_is_opened_anew_for_who_asks_for_it(ledger: Ledger) -> None:
    await begin(ledger, "one")
    key = RunKey("job", TICK, 1)
    assert await ledger.finish(key, now_ms=TICK, duration_ms=1, error="no", progress='{"done": 1}')
    assert (await begin(ledger, "two")).kind == "done"
    wanted = [begin(ledger, f"s{n}", again=1, origin="backfill") for n in range(8)]
    verdicts = await asyncio.gather(*wanted)
    assert sorted((each.kind, each.attempt) for each in verdicts) == [("held", 2)] * 7 + [
        ("run", 2)
    ]
    (row,) = await ledger.history("job")
    told = (row["state"], row["origin"], row["error"], row["finished_at"], row["progress"])
    assert told == ("running", "backfill", None, None, '{"done": 1}')
    assert not await ledger.finish(key, now_ms=TICK, duration_ms=1)
    assert await ledger.finish(RunKey("job", TICK, 2), now_ms=TICK, duration_ms=1)
    assert (await begin(ledger, "three", again=2)).kind == "done"
    assert await ledger.states("job", TICK, TICK) == {TICK: ("succeeded", 2)}


async def test_a_heartbeat_tells_of_progress_and_forgets_none(ledger: Ledger) -> None:
    await begin(ledger, "one")
    key = RunKey("job", TICK, 1)
    assert await ledger.heartbeat(key, 1000, progress='{"done": 3}')
    assert await ledger.heartbeat(key, 1000)
    (row,) = await ledger.history("job")
    assert row["progress"] == '{"done": 3}'


async def test_what_a_job_or_a_user_says_is_kept_whatever_it_is(ledger: Ledger) -> None:
    said = "no \x00 file \udcff"
    assert (await begin(ledger, "a", asked_by=said)).kind == "run"
    key = RunKey("job", TICK, 1)
    async with asyncio.timeout(5):
        assert await ledger.finish(key, now_ms=TICK, duration_ms=1, error=said)
    (row,) = await ledger.history("job")
    assert row["state"] == "failed"
    assert row["error"] == row["asked_by"] == "no \\u0000 file \\udcff"
