"""Runs that begin at the same moment: they are written together, and none is in another's way."""

from __future__ import annotations

import asyncio
import re

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from conftest import fresh_database
from plans import statements
from solocron.ledger import RunKey
from solocron.storage import run_groups
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from workers import table_locked, until

TICK = 1_800_000_000_000
MINUTE = 60_000


async def next_one(
    ledger: RunLedger, job: str = "job", tick: int = TICK, *, owner: str = "me"
) -> bool:
    return await ledger.begin_next(job, tick, owner=owner, now_ms=tick, lease_ms=60_000)


async def kind(ledger: RunLedger, tick: int = TICK, *, origin: str = "schedule") -> str:
    verdict = await ledger.begin(
        "job", tick, owner="other", now_ms=tick, lease_ms=60_000, max_attempts=3, origin=origin
    )
    return verdict.kind


async def test_one_of_many_servers_begins_a_tick(database: Database) -> None:
    servers = [RunLedger(database) for _ in range(12)]
    assert sum(await asyncio.gather(*(next_one(each) for each in servers))) == 1
    (row,) = await servers[0].history("job")
    assert (row["state"], row["attempt"], row["owner"]) == ("running", 1, "me")
    assert (row["origin"], row["fallback"], row["started_at"]) == ("schedule", False, TICK)
    assert await kind(servers[0]) == "held"


async def test_a_tick_waits_for_the_scheduled_ones_before_it(database: Database) -> None:
    ledger = RunLedger(database)
    assert await kind(ledger, TICK - 2, origin="manual") == "run"
    assert await kind(ledger, TICK + 1) == "run"
    assert await next_one(ledger)  # neither a run by hand nor a later one is in its way
    assert not await next_one(ledger, tick=TICK + MINUTE)
    await ledger.finish(RunKey("job", TICK, 1), now_ms=TICK, duration_ms=1)
    await ledger.finish(RunKey("job", TICK + 1, 1), now_ms=TICK, duration_ms=1, error="failed")
    assert await next_one(ledger, tick=TICK + MINUTE)


async def test_whoever_is_refused_refuses_no_other(database: Database) -> None:
    ledger = RunLedger(database)
    assert await next_one(ledger, "job-3")
    jobs = [f"job-{n}" for n in range(6)]
    begun = await asyncio.gather(*(next_one(ledger, each) for each in jobs))
    assert begun == [True, True, True, False, True, True]
    ends = [ledger.finish(RunKey(job, TICK, 1), now_ms=TICK, duration_ms=1) for job in jobs[1:]]
    stale = ledger.finish(RunKey(jobs[0], TICK, 2), now_ms=TICK, duration_ms=1)
    assert await asyncio.gather(stale, *ends) == [False, *[True] * 5]


async def test_what_cannot_be_written_is_told_to_who_asked_for_it(postgres_url: str) -> None:
    async with fresh_database(postgres_url) as database:
        ledger = RunLedger(database)
        bad = asyncio.create_task(next_one(ledger, "bad", owner="\x00"))
        assert await asyncio.gather(next_one(ledger, "one"), next_one(ledger, "two")) == [True] * 2
        with pytest.raises(DBAPIError):
            await bad


async def test_one_that_waits_for_a_frozen_server_holds_up_no_other(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_groups, "_TOGETHER_S", 0.3)
    async with fresh_database(postgres_url) as database:
        ledger = RunLedger(database)
        insertion = (
            "INSERT INTO job_runs (job, tick, attempt, state, owner, origin, started_at,"
            " lease_until) VALUES ('b', :tick, 1, 'running', 'frozen', 'schedule', 0, 0)"
        )
        async with database.begin() as connection:
            await connection.execute(text(insertion), {"tick": TICK})
            waiting = asyncio.create_task(next_one(ledger, "b"))
            async with asyncio.timeout(4):
                assert await asyncio.gather(next_one(ledger, "a"), next_one(ledger, "c"))
            assert not waiting.done()
        assert not await waiting


async def test_cancelled_it_gives_back_what_it_began(postgres_url: str) -> None:
    async with fresh_database(postgres_url) as database:
        ledger = RunLedger(database)

        async def waits() -> bool:
            query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            async with database.connect() as connection:
                return bool((await connection.execute(text(query))).scalar())

        async with table_locked(postgres_url, "job_runs"):
            beginning = asyncio.create_task(next_one(ledger))
            await until(waits)
            beginning.cancel()
        await asyncio.wait([beginning])
        assert beginning.cancelled()
        assert len(await ledger.expired(["job"], TICK)) == 1
        assert await kind(ledger) == "run"


async def test_what_has_ended_is_not_looked_through(database: Database) -> None:
    ledger = RunLedger(database)
    with statements(database) as given:
        assert await next_one(ledger)
        assert await ledger.finish(RunKey("job", TICK, 1), now_ms=TICK, duration_ms=1)
        await ledger.unfinished("job", since_ms=0, before_ms=TICK, now_ms=TICK)
    for verb, index in (
        ("INSERT INTO job_runs", "job_runs_running"), ("SELECT job_runs", "job_runs_running"),
        ("UPDATE job_runs", "job_runs_pkey|autoindex_job_runs"),
    ):  # fmt: skip
        for plan in await given.plans(verb):
            assert re.search(index, plan), plan
