"""One tick from claim to settled, in the original's own words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from conftest import RedisServer, fresh_database
from ledgers import NONE, ledger_of
from solocron.clock import SystemClock
from solocron.cron.alarm import ALARM_AFTER
from solocron.cron.job import Body, Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, LockUnavailable
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.stores.repository import UnknownStore
from workers import until

CALENDAR = Calendar("0 0,6 * * *")


def job(body: Body, **options: Any) -> Job:
    return Job(name="store-auto-close", calendar=CALENDAR, body=body, backoff_ms=1, **options)


def latest() -> int:
    tick = CALENDAR.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


def runner(locks: LockManager, database: Database | None) -> Runner:
    return Runner(
        locks=locks, ledger=ledger_of(database, locks), clock=SystemClock(), owner="w",
        lease_ms=5000,
    )  # fmt: skip


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        yield locks


@pytest.fixture(params=["sqlite", NONE])
async def database(
    request: pytest.FixtureRequest, sqlite_url: str
) -> AsyncIterator[Database | None]:
    """With a database, and without one."""
    if request.param == NONE:
        yield None
        return
    async with fresh_database(sqlite_url) as database:
        yield database


async def test_log_messages_are_the_originals(
    locks: LockManager, database: Database | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(run: Run) -> Mapping[str, int]:
        return {"closed": 3}

    caplog.set_level("INFO")
    outcome = await runner(locks, database).run_tick(job(body), latest())
    assert (outcome.state, outcome.counts) == ("succeeded", {"closed": 3})
    assert [record.getMessage() for record in caplog.records if "alembic" not in record.name] == [
        "✅ Redis connected for distributed locks",
        "✅ Redis ready for distributed locks",
        "Starting store auto-close cron job...",
        "Store auto-close cron job completed successfully",
    ]


async def test_a_loser_sends_one_redis_command_and_no_query(
    locks: LockManager,
    database: Database | None,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running, finish = asyncio.Event(), asyncio.Event()

    async def body(run: Run) -> None:
        running.set()
        await finish.wait()

    nowhere = Database("postgresql://nobody@127.0.0.1:1/none")  # any query would fail
    async with LockManager(redis_server.url, clock=SystemClock()) as other:
        await other.is_locked("cron:warm")
        winner = asyncio.create_task(runner(locks, database).run_tick(job(body), latest()))
        await running.wait()
        caplog.set_level("INFO")
        redis_server.cli("config", "resetstat")
        outcome = await runner(other, database and nowhere).run_tick(job(body), latest())
        stats = redis_server.cli("info", "commandstats")
        assert "cmdstat_evalsha:calls=1," in stats
        assert (outcome.state, outcome.reason) == ("skipped", "held")
        wanted = "Another server is running the store auto-close cron, skipping."
        assert wanted in [record.getMessage() for record in caplog.records]
        finish.set()
        assert (await winner).state == "succeeded"
    await nowhere.close()


async def test_a_failing_job_is_retried_then_given_up(
    locks: LockManager, database: Database | None
) -> None:
    attempts: list[int] = []

    async def body(run: Run) -> None:
        attempts.append(run.attempt)
        raise ValueError("no stock")

    one = runner(locks, database)
    outcome = await one.run_tick(job(body, attempts=3), latest())
    assert attempts == [1, 2, 3]
    assert (outcome.state, outcome.reason) == ("failed", "ValueError: no stock")
    assert (await one.run_tick(job(body), latest())).reason == "done"


async def test_what_would_be_as_wrong_the_next_time_is_tried_once(
    locks: LockManager, database: Database | None
) -> None:
    async def body(run: Run) -> None:
        raise UnknownStore("there is no store 'x'")

    outcome = await runner(locks, database).run_tick(job(body, attempts=3), latest())
    assert (outcome.state, outcome.attempt) == ("failed", 1)


async def test_a_job_may_skip_while_redis_is_down(
    own_redis: RedisServer, database: Database | None
) -> None:
    async def body(run: Run) -> None:
        raise AssertionError

    own_redis.stop()
    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.2) as locks:
        one = runner(locks, database)
        outcome = await one.run_tick(job(body, on_redis_down="skip"), latest())
    assert (outcome.state, outcome.reason) == ("skipped", "redis-down")


@pytest.mark.parametrize("reserve", [True, False])
async def test_while_there_are_older_servers_only_the_jobs_that_they_have_are_held_back(
    own_redis: RedisServer, database: Database | None, reserve: bool
) -> None:
    async def body(run: Run) -> None: ...

    async with LockManager(
        own_redis.url, clock=SystemClock(), deadline_s=0.2, margin_ms=2000
    ) as locks:
        one, what = runner(locks, database), job(body, reserve=reserve)
        with_redis = await one.run_tick(what, latest())
        own_redis.stop()
        without = await one.run_tick(what, latest())
    if reserve:
        assert (with_redis.state, with_redis.reason) == ("skipped", "held")
        assert (without.state, without.reason) == ("skipped", "redis-down")
    else:
        assert with_redis.state == "succeeded"
        assert without.reason != "redis-down"  # the ledger was asked


async def test_a_cancelled_run_is_handed_over(
    locks: LockManager, database: Database | None
) -> None:
    running = asyncio.Event()

    async def stuck(run: Run) -> None:
        running.set()
        await asyncio.Event().wait()

    async def quick(run: Run) -> None:
        return None

    task = asyncio.create_task(runner(locks, database).run_tick(job(stuck), latest()))
    await running.wait()
    task.cancel()
    await asyncio.wait([task])
    outcome = await runner(locks, database).run_tick(job(quick), latest())
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)


async def test_a_transaction_inside_another_of_its_run_is_refused(
    locks: LockManager, database: Database | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solocron.cron.run._TURN_S", 0.1)

    async def body(run: Run) -> None:
        async with run.transaction(), run.transaction():
            pass

    outcome = await runner(locks, database).run_tick(job(body, attempts=1), latest())
    assert outcome.state == "failed"
    wanted = "end it first, or use its connection" if database else "DATABASE_URL is none"
    assert wanted in (outcome.reason or "")


@pytest.mark.parametrize(
    "wrong", [{"ttl_ms": 0}, {"overlap": "maybe"}, {"attempts": 0}, {"catch_up_ms": -1}]
)
def test_a_wrong_job_is_named(wrong: dict[str, Any]) -> None:
    async def body(run: Run) -> None: ...

    with pytest.raises(ConfigError, match="store-auto-close"):
        job(body, **wrong)


async def test_only_a_redis_that_gives_no_answer_about_a_lock_raises_its_alarm(
    own_redis: RedisServer, database: Database | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(run: Run) -> None: ...

    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.2) as locks:
        one, skips = runner(locks, database), job(body, on_redis_down="skip")

        async def met(*wanted: str) -> None:
            assert [(await one.run_tick(skips, latest())).reason for _ in wanted] == [*wanted]

        own_redis.stop()
        await met(*["redis-down"] * (ALARM_AFTER - 1))
        own_redis.start()
        owner = f"elsewhere:1:0:{latest() - 1}"  # an earlier tick's run goes on
        for key in (skips.lock_key, f"{{{skips.lock_key}}}:alive"):
            own_redis.cli("SET", key, owner, "PX", "60000")
        await until(lambda: is_up(locks))
        await met(*["overlap"] * (ALARM_AFTER + 1))
        own_redis.stop()
        await met(*["redis-down"] * (ALARM_AFTER - 1))  # a new row
        assert one.alarm.raised == set()
        await met("redis-down")
        assert one.alarm.raised == {skips.name}
    (alarm,) = [each.getMessage() for each in caplog.records if "ALARM" in each.getMessage()]
    assert re.fullmatch(
        r"ALARM: the store auto-close cron failed to get its lock 3 times in a row: .*Redis.*",
        alarm,
    )


async def is_up(locks: LockManager) -> bool:
    with suppress(LockUnavailable):
        return not await locks.is_locked("cron:nothing")
    return False


async def test_without_redis_a_failing_bodys_traceback_is_its_own(
    own_redis: RedisServer, database: Database | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(run: Run) -> None:
        raise ValueError("no stock")

    own_redis.stop()
    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.2) as locks:
        outcome = await runner(locks, database).run_tick(job(body, attempts=1), latest())
    assert (outcome.state, outcome.reason) == ("failed", "ValueError: no stock")
    (told,) = [each.exc_info for each in caplog.records if each.exc_info]
    assert told is not None and told[1] is not None and told[1].__context__ is None


async def test_each_skip_is_logged_in_a_sentence_that_says_why_and_of_which_tick(
    own_redis: RedisServer, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a host's own logging, which shows no fields, loses nothing."""

    async def body(run: Run) -> None: ...

    caplog.set_level("INFO", "solocron.cron")
    tick = latest()
    at = datetime.fromtimestamp(tick / 1000, UTC).isoformat(timespec="seconds")
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    async with (
        fresh_database(sqlite_url) as database,
        LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.2) as locks,
    ):
        one, each = runner(locks, database), job(body, on_redis_down="skip")

        async def skips(by: Runner = one) -> tuple[str | None, str]:
            caplog.clear()
            outcome = await by.run_tick(each, tick)
            assert outcome.state == "skipped"
            said = [r.getMessage() for r in caplog.records if r.name == "solocron.cron"]
            return outcome.reason, " ".join(said)

        waits = runner(locks, away)
        reason, said = await skips(waits)
        assert reason == "database-down"
        assert said.startswith("The store auto-close cron waits for the database, skipping: ")
        assert await skips(waits) == ("database-down", "")  # once, until one has begun
        await locks.pause(each.lock_key, ttl_ms=60_000, by="me")
        paused = f"Skipping the store auto-close cron of {at}: it is paused."
        assert await skips() == ("paused", paused)
        await locks.resume(each.lock_key)
        for owner, said in (
            (f"w:1:0:{tick}", "Another server is running the store auto-close cron, skipping."),
            (f"w:1:0:{tick - 1}", "An earlier tick of the store auto-close cron is still being run "
             f"by w:1:0:{tick - 1}, skipping that of {at}."),
        ):  # fmt: skip
            for key in (each.lock_key, f"{{{each.lock_key}}}:alive"):
                own_redis.cli("SET", key, owner, "PX", "60000")
            assert (await skips())[1] == said
        own_redis.cli("DEL", each.lock_key)
        assert (await one.run_tick(each, tick)).state == "succeeded"
        done = f"The store auto-close cron of {at} has been run, skipping."
        assert await skips() == ("done", done)
        own_redis.stop()
        down = (
            f"Skipping the store auto-close cron of {at}: Redis is away, and its policy is to skip"
        )
        assert (await skips())[1].startswith(down)
    await away.close()
