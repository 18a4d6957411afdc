"""A host's jobs on a virtual clock: the real scheduler, no sleeping, the same each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from conftest import RedisServer
from shops import put_all
from shops_table import SHOPS, create_shops, put_shops
from solocron import ConfigError, Run, Solocron, Store
from solocron.cron import sweep
from solocron.errors import UnknownJob
from solocron.settings import load
from solocron.storage.engine import Database
from solocron.testing import VirtualCron

START = "2026-04-24T05:59:00Z"  # a Friday


@pytest.fixture
def cron(environment: pytest.MonkeyPatch) -> Solocron:
    """A host's service, with a job of its own each 20 minutes, which is not started."""
    environment.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    environment.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    cron = Solocron(load())

    @cron.job("*/20 * * * *")
    async def restock(run: Run) -> dict[str, int]:
        async with run.transaction() as connection:
            await run.notify(connection, "a", "shop.restocked", {"tick": run.tick})
        return {"shops": 1}

    return cron


@pytest.fixture(params=["no redis", "redis"])
async def virtual(
    request: pytest.FixtureRequest, cron: Solocron, redis_server: RedisServer
) -> AsyncIterator[VirtualCron]:
    redis_url = redis_server.url if request.param == "redis" else None
    async with VirtualCron(cron, start=START, redis_url=redis_url) as virtual:
        stores = [
            Store("a", "A", "UTC", "Mo-Fr 00:00-06:00", is_open=True),
            Store("b", "B", "UTC", "Mo-Fr 06:00-18:00"),
        ]
        await put_all(virtual.cron.parts.database, stores, 0)
        yield virtual


async def test_the_next_tick_runs_what_is_due_then(virtual: VirtualCron) -> None:
    ended = await virtual.advance_to_next_tick()
    assert virtual.now == datetime(2026, 4, 24, 6, tzinfo=UTC)
    assert [(each.job, each.at, each.outcome.state) for each in ended] == [
        (job, virtual.now, "succeeded")
        for job in ("store-auto-close", "store-open-reminder", "restock")
    ]
    assert [dict(each.outcome.counts) for each in ended] == [
        {"closed": 1}, {"reminded": 1}, {"shops": 1}
    ]  # fmt: skip
    told = await virtual.notifications("a")
    assert [(each.seq, each.type) for each in told] == [(1, "store.closed"), (2, "shop.restocked")]
    assert [each.job for each in await virtual.advance_to_next_tick()] == ["restock"]
    assert [each.job for each in await virtual.advance_to_next_tick()] == ["store-open-reminder"]


async def test_of_a_job_that_is_named_only_its_ticks_are_told(virtual: VirtualCron) -> None:
    (ended,) = await virtual.advance_to_next_tick("restock")
    assert (ended.job, ended.at) == ("restock", datetime(2026, 4, 24, 6, tzinfo=UTC))
    told = await virtual.notifications("a")
    assert told[0].type == "store.closed"  # what was due with it was run


async def test_without_any_job_time_goes_on(
    cron: Solocron, environment: pytest.MonkeyPatch
) -> None:
    for name in ("AUTO_CLOSE", "OPEN_REMINDER"):
        environment.setenv(f"SOLOCRON_STORE_{name}_SCHEDULE", "off")
    async with VirtualCron(Solocron(load()), start=START) as virtual:
        assert await virtual.advance(timedelta(hours=6)) == []
        assert virtual.now == datetime(2026, 4, 24, 11, 59, tzinfo=UTC)
        with pytest.raises(UnknownJob, match="there is no job"):
            await virtual.advance_to_next_tick()


async def test_a_day_has_each_tick_once_and_the_same_again(cron: Solocron) -> None:
    async def night() -> list[tuple[str, int, str, int]]:
        async with VirtualCron(cron, start=START) as virtual:
            await put_all(virtual.cron.parts.database, [Store("a", "A", "UTC", "24/7")], 0)
            ended = await virtual.advance(timedelta(hours=6))
            assert virtual.now == datetime(2026, 4, 24, 11, 59, tzinfo=UTC)
            return [(e.job, e.tick, e.outcome.state, e.outcome.attempt) for e in ended]

    loop = asyncio.get_running_loop()
    began = loop.time()
    first = await night()
    assert loop.time() - began < 60
    assert len({(job, tick) for job, tick, *_ in first}) == len(first) == 1 + 12 + 18
    assert {(state, attempt) for _, _, state, attempt in first} == {("succeeded", 1)}
    assert await night() == first


async def test_a_job_that_fails_is_tried_again_without_a_pause(cron: Solocron) -> None:
    tries: list[int] = []

    @cron.job("0 7 * * *")
    async def flaky(run: Run) -> None:
        tries.append(run.attempt)
        if run.attempt < 3:
            raise RuntimeError("once more")

    async with VirtualCron(cron, start="2026-04-24T06:59:00+00:00") as virtual:
        ended = await virtual.advance_to_next_tick("flaky")
        (outcome,) = [each.outcome for each in ended if each.job == "flaky"]
    assert (outcome.state, outcome.attempt, tries) == ("succeeded", 3, [1, 2, 3])


async def test_after_an_outage_the_newest_missed_tick_is_caught_up_with(
    virtual: VirtualCron,
) -> None:
    await virtual.advance_to_next_tick()
    ended = await virtual.outage(timedelta(minutes=55))
    assert {(each.job, f"{each.at:%H:%M}") for each in ended} == {
        ("restock", "06:40"), ("store-open-reminder", "06:30")
    }  # fmt: skip


async def test_it_is_the_schedulers_own_decision_that_is_seen(
    virtual: VirtualCron, monkeypatch: pytest.MonkeyPatch
) -> None:
    await virtual.advance_to_next_tick()
    monkeypatch.setattr("solocron.cron.scheduler.decide", lambda *a, **k: sweep.Decision())
    assert await virtual.outage(timedelta(minutes=55)) == []


async def test_a_run_by_hand_and_a_notification_are_the_services_own(virtual: VirtualCron) -> None:
    outcome = await virtual.cron.run_job("restock")
    assert (outcome.state, await virtual.cron.notify("a", "x", {})) == ("succeeded", 2)


async def test_its_stores_can_be_the_hosts_own(
    environment: pytest.MonkeyPatch, postgres_url: str
) -> None:
    database = Database(postgres_url)
    await create_shops(database)
    await put_shops(database, [Store("7", "Seven", "", "off", is_open=True)])
    await database.close()
    cron = Solocron(load(), stores=SHOPS)
    async with VirtualCron(cron, start=START, database_url=postgres_url) as virtual:
        await virtual.advance_to_next_tick()
        assert [each.type for each in await virtual.notifications("7")] == ["store.closed"]


async def test_what_it_cannot_begin_with_is_named(cron: Solocron) -> None:
    with pytest.raises(ConfigError, match="has no time zone"):
        VirtualCron(cron, start="2026-04-24T05:59:00")
    virtual = VirtualCron(cron, start=START)
    with pytest.raises(ConfigError, match="enter it first"):
        await virtual.advance_to_next_tick()
    async with virtual:
        with pytest.raises(UnknownJob, match="'nightly'"):
            await virtual.advance_to_next_tick("nightly")
        with pytest.raises(ValueError, match="cannot go back"):
            await virtual.advance(timedelta(hours=-1))
