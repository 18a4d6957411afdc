"""Triggers, sweep and runner together: no tick is lost, doubled or run in a burst."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import RedisServer, fresh_database
from ledgers import NONE, ledger_at, ledger_of
from proxy import Proxy
from solocron.clock import Clock, ScaledClock, SystemClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError
from solocron.ledger import Ledger, RunKey
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database

EVERY_SECOND = Calendar("* * * * * *")
HALF_HOURS = Calendar("*/30 * * * *")
START = 1_800_000_000_000  # a half hour
MINUTE = 60_000


class StoppedClock(SystemClock):
    """Wall time that stands until it is set; leases stay in real time."""

    def __init__(self, now_ms: float) -> None:
        self.now = now_ms

    def now_ms(self) -> float:
        return self.now

    def real_ms(self, wall_ms: float) -> float:
        return super().now_ms() + wall_ms - self.now


class Ran:
    """The body of a job; knows what it ran."""

    def __init__(self, body_s: float = 0.0) -> None:
        self.ticks: list[int] = []
        self.attempts: set[tuple[int, int]] = set()
        self._body_s = body_s

    async def __call__(self, run: Run) -> None:
        self.ticks.append(run.tick)
        assert (run.tick, run.attempt) not in self.attempts
        self.attempts.add((run.tick, run.attempt))
        await asyncio.sleep(self._body_s)


def job(body: Any, name: str = "one", calendar: Calendar = HALF_HOURS, **options: Any) -> Job:
    return Job(name=name, calendar=calendar, body=body, backoff_ms=1, **options)


@asynccontextmanager
async def server(
    redis_url: str, database_url: str, clock: Clock, *jobs: Job, sweep_s: float = 0.2,
    deadline_s: float = 5.0, lease_ms: int = 5000,
) -> AsyncIterator[Scheduler]:  # fmt: skip
    """A scheduler with all its parts, as one server has them; not started."""
    database = None if database_url == NONE else Database(database_url)
    async with LockManager(
        redis_url, clock=clock, lease_ms=lease_ms, deadline_s=deadline_s
    ) as locks:
        ledger = ledger_of(database, locks, clock)
        runner = Runner(locks=locks, ledger=ledger, clock=clock, owner="w", lease_ms=lease_ms)
        scheduler = Scheduler(
            jobs, runner=runner, locks=locks, ledger=ledger, clock=clock, sweep_s=sweep_s
        )
        try:
            yield scheduler
        finally:
            await scheduler.stop(5)
            if database is not None:
                await database.close()


async def until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def swept(scheduler: Scheduler) -> None:
    """One sweep, and the end of what it started."""
    await scheduler.sweep()
    await until(lambda: scheduler.running == 0)


@pytest.fixture(params=["sqlite", NONE])
async def migrated(request: pytest.FixtureRequest, sqlite_url: str) -> str:
    """The URL of a database that is ready, or of none."""
    if request.param == NONE:
        return NONE
    async with fresh_database(sqlite_url):
        return sqlite_url


async def crashed(ledger: Ledger) -> None:
    await ledger.begin("one", START, owner="gone", now_ms=START, lease_ms=60_000, max_attempts=3)


def said(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith(start)]


# -- catching up -------------------------------------------------------------------------------


@pytest.mark.parametrize("redis_forgot", [False, True])
async def test_a_tick_that_fell_into_a_deploy_gap_is_caught_up(
    redis_server: RedisServer, migrated: str, redis_forgot: bool
) -> None:
    ran, clock = Ran(), StoppedClock(START - 1)
    async with server(redis_server.url, migrated, clock, job(ran)) as before:
        await swept(before)
        clock.now = START + 5000
        await swept(before)
    if redis_forgot:
        redis_server.cli("flushall")
    clock.now = START + 30 * MINUTE + 8  # all servers were down when the tick came due
    async with server(redis_server.url, migrated, clock, job(ran)) as after:
        for _ in range(3):
            clock.now += 2000
            await swept(after)
    is_lost = redis_forgot and migrated == NONE  # nobody is left who knows of a gap
    assert ran.ticks == [START, *([] if is_lost else [START + 30 * MINUTE])]


async def test_a_tick_just_before_a_start_is_run_not_the_one_before_it(
    redis_server: RedisServer, migrated: str
) -> None:
    """No trigger was there for it, however young it is."""
    ran, clock = Ran(), StoppedClock(START - 1)
    async with server(redis_server.url, migrated, clock, job(ran), sweep_s=5.0) as before:
        await swept(before)
        clock.now = START + 5000
        await swept(before)
    clock.now = START + 60 * MINUTE + 400
    async with server(redis_server.url, migrated, clock, job(ran), sweep_s=5.0) as after:
        clock.now += 100
        await swept(after)
        clock.now += 5000
        await swept(after)
    assert ran.ticks == [START, START + 60 * MINUTE]


async def test_a_first_deployment_owes_nothing_from_before_its_start(
    redis_server: RedisServer, migrated: str
) -> None:
    ran, clock = Ran(), StoppedClock(START + 5000)
    async with server(redis_server.url, migrated, clock, job(ran)) as scheduler:
        await swept(scheduler)
        assert ran.ticks == []
        clock.now = START + 31 * MINUTE
        await swept(scheduler)
    assert ran.ticks == [START + 30 * MINUTE]


async def test_a_first_tick_that_met_no_database_is_run_when_it_is_there(
    redis_server: RedisServer, postgres_url: str
) -> None:
    database = Database(postgres_url)
    await database.migrate()
    await database.close()
    ran, clock = Ran(), StoppedClock(START - 5000)
    async with Proxy.to_postgres(postgres_url) as proxy:
        url = proxy.postgres_url(postgres_url)
        await proxy.down()
        async with server(redis_server.url, url, clock, job(ran)) as scheduler:
            await swept(scheduler)
            clock.now = START + 5000
            await swept(scheduler)
            assert ran.ticks == []
            await proxy.up()
            await swept(scheduler)
    assert ran.ticks == [START]


async def test_of_many_missed_ticks_the_newest_is_run_and_no_other(
    redis_server: RedisServer, migrated: str
) -> None:
    ran, clock = Ran(), StoppedClock(START + 1000)
    async with server(
        redis_server.url, migrated, clock, job(ran, catch_up_ms=24 * 60 * MINUTE)
    ) as scheduler:
        await swept(scheduler)
        clock.now = START + 20 * 60 * MINUTE + 2000  # forty ticks later
        for _ in range(3):
            await swept(scheduler)
    assert ran.ticks == [START + 20 * 60 * MINUTE]


@pytest.mark.parametrize(("minutes", "then"), [(0, 30), (29, 30), (31, 60)])
async def test_a_tick_is_left_out_for_a_run_that_would_have_met_it_on_time_and_for_no_late_one(
    redis_server: RedisServer, migrated: str, minutes: int, then: int
) -> None:
    ran, clock, started, end = Ran(), StoppedClock(START - 1000), asyncio.Event(), asyncio.Event()

    async def meets_the_next(run: Run) -> None:
        await ran(run)
        started.set()
        await end.wait()

    one = job(meets_the_next)
    async with server(redis_server.url, migrated, clock, one) as scheduler:
        await swept(scheduler)
        clock.now = START + 30 * MINUTE - 100  # nobody could run it before
        await scheduler.sweep()
        await started.wait()
        clock.now = START + 30 * MINUTE + 10
        scheduler._fire(one, START + 30 * MINUTE)
        await until(lambda: scheduler.running == 1)
        clock.now += minutes * MINUTE  # so long the run takes
        end.set()
        await until(lambda: scheduler.running == 0)
        clock.now += 2000
        await swept(scheduler)
    assert ran.ticks == [START, START + then * MINUTE]


async def test_a_queue_runs_every_missed_tick_of_the_window_in_order(
    redis_server: RedisServer, migrated: str
) -> None:
    ran, clock = Ran(), StoppedClock(START - 1000)
    queueing = job(ran, catch_up_ms=120 * MINUTE, overlap="queue")
    async with server(redis_server.url, migrated, clock, queueing) as scheduler:
        clock.now = START + 1000
        await swept(scheduler)
        clock.now = START + 20 * 60 * MINUTE + 2000
        await swept(scheduler)
    newest = START + 20 * 60 * MINUTE
    assert ran.ticks == [START, *range(newest - 120 * MINUTE, newest + 1, 30 * MINUTE)]


@pytest.mark.parametrize("redis_forgot", [False, True])
async def test_catch_up_of_all_runs_each_tick_of_an_outage_once_on_any_of_the_servers(
    redis_server: RedisServer, postgres_url: str, redis_forgot: bool
) -> None:
    database = Database(postgres_url)
    await database.migrate()
    await database.close()
    ran, clock = Ran(0.05), StoppedClock(START - 1000)
    jobs = [job(ran, catch_up="all", catch_up_ms=120 * MINUTE) for _ in range(2)]
    async with (
        server(redis_server.url, postgres_url, clock, jobs[0]) as one,
        server(redis_server.url, postgres_url, clock, jobs[1]) as other,
    ):
        await asyncio.gather(one.sweep(), other.sweep())  # a first deployment owes nothing
        clock.now = START + 1000
        await asyncio.gather(swept(one), swept(other))
        assert ran.ticks == [START]
        if redis_forgot:
            redis_server.cli("flushall")
        clock.now = START + 20 * 60 * MINUTE + 2000
        await asyncio.gather(swept(one), swept(other))
        await asyncio.gather(swept(one), swept(other))
    newest = START + 20 * 60 * MINUTE
    assert ran.ticks == [START, *range(newest - 120 * MINUTE, newest + 1, 30 * MINUTE)]


async def test_catch_up_of_all_without_redis_leaves_out_what_overlapped(
    own_redis: RedisServer, database: Database, database_url: str
) -> None:
    ran, clock = Ran(), StoppedClock(START + 1000)

    async def long_one(run: Run) -> None:
        await ran(run)
        if run.tick == START + 30 * MINUTE:
            clock.now = START + 100 * MINUTE  # two more ticks come due meanwhile

    every = job(long_one, catch_up="all", catch_up_ms=24 * 60 * MINUTE)
    own_redis.stop()
    async with server(own_redis.url, database_url, clock, every, deadline_s=0.2) as scheduler:
        clock.now = START + 31 * MINUTE
        await swept(scheduler)
        clock.now = START + 151 * MINUTE
        await swept(scheduler)
    assert [(tick - START) // MINUTE for tick in ran.ticks] == [30, 120, 150]


async def test_without_catch_up_no_tick_is_run_late_but_one_that_began_is_taken_over(
    redis_server: RedisServer, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran, clock = Ran(), StoppedClock(START - 1000)
    none = job(ran, catch_up="skip", catch_up_ms=24 * 60 * MINUTE)
    async with server(redis_server.url, migrated, clock, none) as scheduler:
        await swept(scheduler)
        clock.now = START + 6000
        for _ in range(2):
            await swept(scheduler)
        assert ran.ticks == [] and len(said(caplog, "The one cron missed 1 ticks")) == 1
        ledger = scheduler._ledger
        tick = START + 30 * MINUTE
        clock.now = tick + 60_000.0
        await ledger.begin("one", tick, owner="gone", now_ms=tick, lease_ms=0, max_attempts=3)
        await until(lambda: redis_server.cli("exists", "{cron:one}:looked") == "0")
        await swept(scheduler)
    assert ran.ticks == [tick]


async def test_a_delayed_job_begins_so_long_after_its_tick_and_is_on_time(
    redis_server: RedisServer, migrated: str
) -> None:
    ran, clock = Ran(), StoppedClock(START - 1000)
    late = job(ran, jitter_ms=20 * MINUTE)
    delay = late.delay_ms
    assert delay > 3 * MINUTE
    async with server(redis_server.url, migrated, clock, late) as scheduler:
        await swept(scheduler)
        for clock.now in (START + 2000, START + delay, START + delay + 39):
            await swept(scheduler)
        assert ran.ticks == []  # neither at its tick nor before the triggers had their time
        clock.now = START + delay + 50
        await swept(scheduler)
        assert ran.ticks == [START]
        entry = scheduler._runner.journal.standing("one", START)
        assert entry is not None and (entry.verdict, entry.late_ms) == ("recovered", 50)


async def test_a_delayed_jobs_trigger_fires_so_long_after_the_tick(
    redis_server: RedisServer, migrated: str
) -> None:
    began: list[tuple[int, float]] = []

    async def body(run: Run) -> None:
        began.append((run.tick, SystemClock().now_ms()))

    late = job(body, calendar=EVERY_SECOND, jitter_ms=3000)
    assert late.delay_ms > 1000  # so that another tick comes meanwhile
    async with server(redis_server.url, migrated, SystemClock(), late, sweep_s=60) as scheduler:
        scheduler.start()
        await until(lambda: len(began) == 3)
        entry = scheduler._runner.journal.standing("one", began[0][0])
    assert entry is not None and entry.verdict == "ran"
    assert entry.late_ms <= began[0][1] - began[0][0] - late.delay_ms + 1
    assert all(at - tick >= late.delay_ms for tick, at in began)
    assert [tick - began[0][0] for tick, _ in began] == [0, 1000, 2000]


async def test_a_jobs_own_lease_is_renewed_among_longer_ones(
    redis_server: RedisServer, migrated: str
) -> None:
    left: list[int] = []

    async def body(run: Run) -> None:
        for _ in range(6):
            await asyncio.sleep(0.3)
            left.append(int(redis_server.cli("pttl", f"{{{run.lease.key}}}:alive")))

    short = job(body, "short", lease_ms=700)
    long = job(Ran(2.5), "long")
    clock = StoppedClock(START - 1000)
    async with server(redis_server.url, migrated, clock, short, long, lease_ms=60_000) as scheduler:
        await swept(scheduler)
        clock.now = START + 1000
        await scheduler.sweep()
        await until(lambda: scheduler.running == 0)
        ended = [await scheduler._ledger.history(name, 1) for name in ("short", "long")]
    assert all(0 < each <= 700 for each in left) and len(left) == 6
    assert [rows[0]["state"] for rows in ended] == ["succeeded", "succeeded"]


async def test_a_tick_older_than_the_window_is_missed_and_said_to_be_once(
    redis_server: RedisServer, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran, clock = Ran(), StoppedClock(START + 1000)
    nightly = job(ran, calendar=Calendar("0 3 * * *"), catch_up_ms=60 * MINUTE)
    async with server(redis_server.url, migrated, clock, nightly) as scheduler:
        await swept(scheduler)
        clock.now = START + 2 * 24 * 60 * MINUTE
        for _ in range(3):
            await swept(scheduler)
        scheduler._fire(nightly, nightly.calendar.latest_at(clock.now) or 0)  # a machine resumed
        assert scheduler.running == 0
    assert ran.ticks == []
    assert said(caplog, "The one cron missed") == [
        "The one cron missed 2 ticks: older than the catch-up window."
    ]


async def test_a_tick_that_ran_is_not_called_missed_because_redis_forgot_it(
    redis_server: RedisServer, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran, clock = Ran(), StoppedClock(START - 1000)
    each = job(ran, catch_up_ms=MINUTE)
    async with server(redis_server.url, migrated, clock, each) as scheduler:
        clock.now = START + 1000
        await swept(scheduler)
    redis_server.cli("flushall")
    clock.now = START + 20 * MINUTE
    async with server(redis_server.url, migrated, clock, each) as scheduler:
        await swept(scheduler)
    assert ran.ticks == [START]
    assert said(caplog, "The one cron missed") == []


async def test_a_crashed_tick_is_taken_over_although_a_newer_one_came_due(
    redis_server: RedisServer, migrated: str
) -> None:
    async with ledger_at(migrated, redis_server.url) as ledger:
        await ledger.begin(
            "one", START, owner="gone", now_ms=START, lease_ms=60_000, max_attempts=3
        )
        ran, clock = Ran(), StoppedClock(START + 31 * MINUTE)
        async with server(redis_server.url, migrated, clock, job(ran)) as scheduler:
            await swept(scheduler)  # the crashed owner's lease still lives
            assert ran.ticks == []
            await ledger.hand_over(RunKey("one", START, 1))
            await swept(scheduler)
    assert ran.ticks == [START, START + 30 * MINUTE]


async def test_a_claim_that_finds_its_tick_run_covers_no_other(
    redis_server: RedisServer, migrated: str
) -> None:
    """The owner finished in the ledger and stalled before Redis heard of it; the next tick came
    due while somebody else held the lock, only to find that out."""
    async with ledger_at(migrated, redis_server.url) as ledger:
        await ledger.begin("one", START, owner="w", now_ms=START, lease_ms=5000, max_attempts=3)
        await ledger.finish(RunKey("one", START, 1), now_ms=START, duration_ms=1)
        ran, clock = Ran(), StoppedClock(START + 30 * MINUTE)
        each = job(ran)
        async with server(redis_server.url, migrated, clock, each) as scheduler:
            outcome = await scheduler._runner.run_tick(each, START)
            assert (outcome.state, outcome.reason) == ("skipped", "done")
            assert redis_server.cli("GET", "{cron:one}:settled") == str(START)
            clock.now += 5000
            await swept(scheduler)
    assert ran.ticks == [START + 30 * MINUTE]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_silent_run_is_taken_over_although_a_later_tick_was_settled(
    redis_server: RedisServer, migrated: str, paused: bool
) -> None:
    """Its owner stalled between claim and ledger until the next tick was over, and then died."""
    async with ledger_at(migrated, redis_server.url) as ledger:
        await ledger.begin(
            "one", START, owner="gone", now_ms=START, lease_ms=60_000, max_attempts=3
        )
        ran, clock = Ran(), StoppedClock(START + 31 * MINUTE)
        each = job(ran)
        async with server(redis_server.url, migrated, clock, each, lease_ms=500) as scheduler:
            redis_server.cli("SET", "{cron:one}:settled", str(START + 30 * MINUTE))
            if paused:
                redis_server.cli("SET", "{cron:one}:paused", "1")
            await swept(scheduler)  # the owner's lease still lives
            assert ran.ticks == []
            await ledger.hand_over(RunKey("one", START, 1))
            await swept(scheduler)  # another server may have looked just now
            redis_server.cli("DEL", "{cron:one}:looked")
            await swept(scheduler)
            await swept(scheduler)
    assert ran.ticks == ([] if paused else [START])
    assert redis_server.cli("GET", "{cron:one}:settled") == str(START + 30 * MINUTE)


# -- stalls and blips --------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["skip", "queue"])
async def test_after_a_stall_the_schedule_goes_on_and_skip_brings_no_burst(
    redis_server: RedisServer, migrated: str, overlap: str
) -> None:
    ran = Ran()
    clock = ScaledClock(anchor_ms=time.time() * 1000, start_ms=START, rate=5)
    each = job(ran, calendar=EVERY_SECOND, overlap=overlap)
    async with server(redis_server.url, migrated, clock, each, lease_ms=1500) as scheduler:
        scheduler.start()
        await until(lambda: len(ran.ticks) >= 3)
        stalled_at, before = clock.now_ms(), len(ran.ticks)
        time.sleep(2.0)  # noqa: ASYNC251  # ten ticks pass, longer than the lease
        woken_at = clock.now_ms()
        await until(lambda: ran.ticks[-1] > woken_at + 3000)
    assert sorted(set(ran.ticks)) == ran.ticks  # each once, in order
    if overlap == "queue":
        assert ran.ticks == list(range(ran.ticks[0], ran.ticks[-1] + 1, 1000))
    else:
        stale = [tick for tick in ran.ticks[before:] if stalled_at < tick < woken_at - 1000]
        assert len(stale) <= 1  # one that was under way, or due, when the loop stalled


@pytest.mark.parametrize("blip", ["redis", "database", "both", "redis, of no database"])
async def test_after_a_blip_the_schedule_goes_on_and_each_change_is_said_once(
    own_redis: RedisServer, postgres_url: str, blip: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(postgres_url)
    await database.migrate()
    await database.close()
    ran, caught = Ran(), Ran()
    clock = ScaledClock(anchor_ms=time.time() * 1000, start_ms=START, rate=5)
    jobs = (
        job(ran, calendar=EVERY_SECOND, overlap="queue"),
        job(caught, "two", EVERY_SECOND, overlap="skip"),
    )
    async with Proxy.to_postgres(postgres_url) as proxy:
        url = NONE if blip.endswith("no database") else proxy.postgres_url(postgres_url)
        blip = blip.partition(",")[0]
        async with server(own_redis.url, url, clock, *jobs, deadline_s=0.3) as scheduler:
            scheduler.start()
            await until(lambda: len(ran.ticks) >= 3 and len(caught.ticks) >= 3)
            caplog.set_level("INFO")
            if blip != "database":
                own_redis.stop()
            if blip != "redis":
                await proxy.down()
            await asyncio.sleep(2.0)  # ten ticks and ten sweeps
            if blip != "database":
                own_redis.start()
            if blip != "redis":
                await proxy.up()
            back = clock.now_ms()
            await until(lambda: min(ran.ticks[-1], caught.ticks[-1]) > back + 5000)
    assert len(set(caught.ticks)) == len(caught.ticks)
    if blip != "both":  # nothing was lost; while both are gone nobody can know
        assert sorted(ran.ticks) == list(range(ran.ticks[0], max(ran.ticks) + 1, 1000))
    assert len(said(caplog, "Database lost")) == (blip != "redis")
    assert len(said(caplog, "Database ready again")) == (blip != "redis")
    assert len(said(caplog, "Redis lost")) == (blip != "database")
    assert len(said(caplog, "✅ Redis ready")) == (blip != "database")


# -- many servers and jobs ---------------------------------------------------------------------


async def test_losers_send_one_command_per_tick_and_one_per_sweep_for_all_jobs(
    redis_server: RedisServer, migrated: str
) -> None:
    clock = StoppedClock(START - 1000)
    slow = [job(Ran(60), f"job-{n}") for n in range(40)]
    losing = [job(Ran(), f"job-{n}") for n in range(40)]
    nowhere = "postgresql://nobody@127.0.0.1:1/none"  # any query would fail
    nowhere = NONE if migrated == NONE else nowhere
    async with (
        server(redis_server.url, migrated, clock, *slow) as winner,
        server(redis_server.url, nowhere, clock, *losing) as loser,
    ):
        for number in range(40):
            settled = f"{{cron:job-{number}}}:settled"
            redis_server.cli("set", settled, str(START - 30 * MINUTE), "PX", "60000")
        await loser.sweep()
        clock.now = START + 1000
        await winner.sweep()
        await until(lambda: all(each.body.ticks for each in slow))  # type: ignore[attr-defined]
        redis_server.cli("config", "resetstat")
        for each in losing:
            loser._fire(each, START)
        await until(lambda: loser.running == 0)
        await swept(loser)
        stats = redis_server.cli("info", "commandstats")
        assert "cmdstat_evalsha:calls=41," in stats
        assert not any(each.body.ticks for each in losing)  # type: ignore[attr-defined]
        await winner.stop(0)


async def test_a_redis_that_forgets_has_its_servers_run_nothing_again(
    redis_server: RedisServer, migrated: str
) -> None:
    """Also those that run none of it themselves know what was run."""
    clock, ran, others = StoppedClock(START - 1000), Ran(), Ran()
    async with (
        server(redis_server.url, migrated, clock, job(ran)) as one,
        server(redis_server.url, migrated, clock, job(others)) as two,
    ):
        await swept(two)
        clock.now = START + 1000
        await swept(one)
        await swept(two)
        redis_server.cli("flushall")
        clock.now = START + 10_000
        await swept(two)
        await swept(one)
        assert (ran.ticks, others.ticks) == ([START], [])
        clock.now = START + 31 * MINUTE
        await swept(two)
    assert (ran.ticks, others.ticks) == ([START], [START + 30 * MINUTE])


async def test_a_server_without_jobs_knows_whether_redis_is_there(
    redis_server: RedisServer, sqlite_url: str
) -> None:
    async with LockManager(redis_server.url) as locks, fresh_database(sqlite_url) as database:
        clock, ledger = SystemClock(), ledger_of(database, locks, SystemClock())
        runner = Runner(locks=locks, ledger=ledger, clock=clock, owner="w", lease_ms=5000)
        await Scheduler([], runner=runner, locks=locks, ledger=ledger, clock=clock).sweep()
        assert locks.link.is_up


async def test_two_jobs_of_one_name_are_refused(redis_server: RedisServer, migrated: str) -> None:
    with pytest.raises(ConfigError, match="'one'"):
        async with server(redis_server.url, migrated, SystemClock(), job(Ran()), job(Ran(), "one")):
            raise AssertionError


async def test_a_job_that_skips_without_redis_waits_quietly_and_is_caught_up(
    own_redis: RedisServer, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran, clock = Ran(), StoppedClock(START - 1000)
    waiting = job(ran, on_redis_down="skip")
    async with server(own_redis.url, migrated, clock, waiting, deadline_s=0.2) as scheduler:
        await swept(scheduler)
        own_redis.stop()
        clock.now = START + 1000
        for _ in range(3):
            await swept(scheduler)
        assert ran.ticks == [] and said(caplog, "Skipping") == []
        own_redis.start()
        await swept(scheduler)
    assert ran.ticks == [START]


async def test_stop_leaves_no_task_and_may_be_asked_twice(
    redis_server: RedisServer, migrated: str
) -> None:
    before = asyncio.all_tasks()
    clock = ScaledClock(anchor_ms=time.time() * 1000, start_ms=START, rate=20)
    stuck = Ran(60)
    async with server(
        redis_server.url, migrated, clock, job(stuck, calendar=EVERY_SECOND)
    ) as scheduler:
        scheduler.start()
        scheduler.start()
        await until(lambda: stuck.ticks)
        await scheduler.stop(0.05)
        await scheduler.stop(0.05)
        assert scheduler.running == 0
    assert {task for task in asyncio.all_tasks() if not task.done()} == before
    assert [later - tick for tick, later in itertools.pairwise(stuck.ticks)] == []
