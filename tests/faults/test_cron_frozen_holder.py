"""A process frozen in the middle of a fenced transaction holds the run's row only for a while."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from solocron.errors import LeaseLost, StorageUnavailable
from solocron.ledger import RunKey
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger

TICK = 1_800_000_000_000
IDLE_MS = 1000


async def hold(url: str) -> None:
    """The process that will be frozen: takes the run, writes, and waits with its transaction."""
    database = Database(url, idle_ms=IDLE_MS)
    ledger = RunLedger(database)
    await begin(ledger, "frozen", lease_ms=100)
    outcome = "committed"
    try:
        async with ledger.fenced(RunKey("job", TICK, 1)) as connection:
            await connection.execute(text("INSERT INTO effects VALUES ('frozen')"))
            print(json.dumps("holding"), flush=True)
            sys.stdin.readline()
            await connection.execute(text("INSERT INTO effects VALUES ('woken')"))
    except (StorageUnavailable, LeaseLost) as error:
        outcome = type(error).__name__
    print(json.dumps(outcome), flush=True)
    await database.close()


async def begin(ledger: RunLedger, owner: str, lease_ms: int) -> Any:
    return await ledger.begin(
        "job", TICK, owner=owner, now_ms=TICK, lease_ms=lease_ms, max_attempts=3
    )


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url)
    await database.migrate()
    async with database.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (worker VARCHAR(20))"))
    yield database
    await database.close()


async def test_a_frozen_holder_is_passed_and_writes_nothing_when_it_wakes(
    database: Database, postgres_url: str
) -> None:
    frozen = await asyncio.create_subprocess_exec(
        sys.executable, __file__, postgres_url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert frozen.stdin is not None and frozen.stdout is not None
    assert json.loads(await frozen.stdout.readline()) == "holding"
    frozen.send_signal(signal.SIGSTOP)
    try:
        ledger, began = RunLedger(database), time.monotonic()
        async with asyncio.timeout(20):
            while (verdict := await begin(ledger, "survivor", 60_000)).kind != "run":
                await asyncio.sleep(0.05)
        assert verdict.attempt == 2
        assert time.monotonic() - began < IDLE_MS / 1000 + 3
        async with ledger.fenced(RunKey("job", TICK, 2)) as connection:
            await connection.execute(text("INSERT INTO effects VALUES ('survivor')"))
        assert await ledger.finish(RunKey("job", TICK, 2), now_ms=TICK, duration_ms=1)
    finally:
        frozen.send_signal(signal.SIGCONT)
    frozen.stdin.write(b"go on\n")
    assert json.loads(await frozen.stdout.readline()) == "StorageUnavailable"
    assert await frozen.wait() == 0
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT worker FROM effects"))
        assert list(rows.scalars()) == ["survivor"]


async def test_a_row_that_stays_locked_is_unavailable_but_the_database_is_not_lost(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = RunLedger(database)
    await begin(ledger, "owner", lease_ms=0)
    async with ledger.fenced(RunKey("job", TICK, 1)):
        began = time.monotonic()
        with pytest.raises(StorageUnavailable, match="lock timeout"):
            await begin(ledger, "survivor", lease_ms=60_000)
        assert 4 < time.monotonic() - began < 9
    assert (await begin(ledger, "survivor", lease_ms=60_000)).attempt == 2
    assert not [r for r in caplog.records if "Database" in r.getMessage()]


@pytest.mark.parametrize("code", ["55P03", "57P01", "25P03", "40P01", "40001", "57014"])
async def test_answers_that_pass_are_unavailable(database: Database, code: str) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'as it happens' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(StorageUnavailable, match="as it happens"):
        async with database.begin() as connection:
            await connection.execute(text(raising))


async def test_a_callers_own_timeout_in_a_transaction_stays_its_own(database: Database) -> None:
    with pytest.raises(TimeoutError):
        async with database.begin():
            raise TimeoutError
    with pytest.raises(ConnectionResetError):
        async with database.begin():
            raise ConnectionResetError


async def test_a_database_that_goes_and_returns_is_said_to_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    nowhere = Database("postgresql://nobody:hush@127.0.0.1:1/none")
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            await RunLedger(nowhere).latest_ticks(["one"])
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Database")]
    assert len(said) == 1 and said[0].startswith("Database lost: ") and "hush" not in said[0]
    await nowhere.close()


if __name__ == "__main__":
    asyncio.run(hold(sys.argv[1]))
