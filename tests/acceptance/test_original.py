"""The original system, row by row: each test is named after the row of its page that it checks.

`fleet` is three servers: the whole service three times, on one Redis and one database.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

import aiohttp
import pytest

from clients import Listener, connected, subscribe
from conftest import SECRET, RedisServer
from services import http_server, mail_server
from shops import closings, open_shops, put_all, runs, still_open
from solocron.clock import SystemClock
from solocron.cron.alarm import ALARM_AFTER
from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.errors import LeaseLost, LockUnavailable
from solocron.ledger import RunKey
from solocron.locks.manager import LockManager
from solocron.service import Solocron
from solocron.settings import load
from solocron.stores.model import Store
from workers import NEVER

AUTO_CLOSE, OPEN_REMINDER = "cron:store-auto-close", "cron:store-open-reminder"
MINUTE = 60_000


@pytest.fixture
def settings(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment whose schedules never come due by themselves."""
    environment.delenv("SOLOCRON_AUTH_SECRET")
    environment.setenv("SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE", NEVER)
    environment.setenv("SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE", NEVER)
    return environment


@pytest.fixture
async def fleet(settings: pytest.MonkeyPatch) -> AsyncIterator[list[Solocron]]:
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(3):
            cron = Solocron(load())
            await cron.parts.database.migrate()
            servers.append(await stack.enter_async_context(cron))
        yield servers


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[tuple[LockManager, LockManager]]:
    """The lock managers of two servers."""
    one, other = (LockManager(redis_server.url, clock=SystemClock()) for _ in range(2))
    async with one, other:
        yield one, other


def latest(job: Job) -> int:
    tick = job.calendar.latest_at(SystemClock().now_ms())
    assert tick is not None
    return tick


async def all_run(fleet: Sequence[Solocron], name: str) -> list[Outcome]:
    """The job's newest tick comes due on every server at once."""
    return await asyncio.gather(
        *(each.parts.runner.run_tick(each.jobs[name], latest(each.jobs[name])) for each in fleet)
    )


async def hosted(fleet: Sequence[Solocron], body: object, **options: object) -> list[Outcome]:
    """One tick of a job with that body, on every server at once."""
    ready = fleet[0].jobs["store-auto-close"]
    job = Job(name="my-job", calendar=ready.calendar, body=body, **options)  # type: ignore[arg-type]
    return await asyncio.gather(*(each.parts.runner.run_tick(job, latest(job)) for each in fleet))


# -- How it works ----------------------------------------------------------------------------


async def test_lock_acquisition(locks: tuple[LockManager, LockManager]) -> None:
    one, other = locks
    got = await asyncio.gather(*(each.acquire_lock("cron:x", MINUTE) for each in locks))
    assert sorted(got) == [False, True]
    assert await one.is_locked("cron:x") and await other.is_locked("cron:x")


async def test_single_execution(fleet: list[Solocron]) -> None:
    ran = []

    async def body(run: Run) -> None:
        ran.append(run.tick)

    outcomes = await hosted(fleet, body)
    assert len(ran) == 1
    assert sorted(each.state for each in outcomes) == ["skipped", "skipped", "succeeded"]


async def test_automatic_expiry(
    locks: tuple[LockManager, LockManager], redis_server: RedisServer
) -> None:
    one, other = locks
    await one.acquire_lock("cron:x", 40)
    async with asyncio.timeout(5):
        while not await other.acquire_lock("cron:x", MINUTE):
            await asyncio.sleep(0.005)
    assert redis_server.cli("ttl", "cron:x") in ("59", "60")


@pytest.mark.parametrize("fails", [False, True])
async def test_graceful_release(
    fleet: list[Solocron], redis_server: RedisServer, fails: bool
) -> None:
    async def body(run: Run) -> None:
        assert redis_server.cli("exists", "cron:my-job") == "1"
        if fails:
            raise ValueError

    await hosted(fleet, body, attempts=1)
    assert redis_server.cli("exists", "cron:my-job") == "0"


async def test_px_sets_expiry_in_milliseconds(
    locks: tuple[LockManager, LockManager], redis_server: RedisServer
) -> None:
    await locks[0].acquire_lock("cron:x", 12_345)
    assert 11_000 < int(redis_server.cli("pttl", "cron:x")) <= 12_345


async def test_nx_sets_only_a_key_that_does_not_exist(
    locks: tuple[LockManager, LockManager], redis_server: RedisServer
) -> None:
    redis_server.cli("set", "cron:x", "locked", "PX", "60000", "NX")
    assert not await locks[0].acquire_lock("cron:x", MINUTE)
    assert redis_server.cli("get", "cron:x") == "locked"


async def test_returns_ok_if_lock_was_acquired(locks: tuple[LockManager, LockManager]) -> None:
    assert await locks[0].acquire_lock("cron:x", MINUTE) is True


# -- Current cron jobs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "minutes", "schedule"),
    [
        ("store-auto-close", AUTO_CLOSE, 10, "0 0,6 * * *"),
        ("store-open-reminder", OPEN_REMINDER, 5, "*/30 * * * *"),
    ],
)
def test_lock_key_ttl_and_schedule_of_the_current_cron_jobs(
    environment: pytest.MonkeyPatch, name: str, key: str, minutes: int, schedule: str
) -> None:
    job = Solocron(load()).jobs[name]
    assert (job.lock_key, job.ttl_ms) == (key, minutes * MINUTE)
    assert (job.calendar.expression, job.calendar.zone) == (schedule, "UTC")


async def test_store_auto_close(fleet: list[Solocron]) -> None:
    database = fleet[0].parts.database
    shops = await open_shops(database, 3)
    outcomes = await all_run(fleet, "store-auto-close")
    assert [dict(each.counts) for each in outcomes if each.state == "succeeded"] == [{"closed": 3}]
    assert await still_open(database) == 0
    assert await closings(database) == [(each, 1) for each in shops]


async def test_store_open_reminder(fleet: list[Solocron]) -> None:
    open_now = [Store("late", "Late", "UTC", "24/7"), Store("early", "Early", "UTC", "24/7 off")]
    await put_all(fleet[0].parts.database, open_now, 0)
    outcomes = await all_run(fleet, "store-open-reminder")
    assert [dict(each.counts) for each in outcomes if each.state == "succeeded"] == [
        {"reminded": 1}
    ]
    assert await closings(fleet[0].parts.database) == [("late", 1)]


# -- Functions, usage, configuration -----------------------------------------------------------


async def test_acquire_lock(locks: tuple[LockManager, LockManager]) -> None:
    assert await locks[0].acquire_lock("cron:x", MINUTE)
    assert not await locks[1].acquire_lock("cron:x", MINUTE)


async def test_release_lock(locks: tuple[LockManager, LockManager]) -> None:
    one, other = locks
    assert not await one.release_lock("cron:x")  # safe to call even if it does not exist
    await one.acquire_lock("cron:x", MINUTE)
    assert not await other.release_lock("cron:x")
    assert await one.release_lock("cron:x")
    assert await other.acquire_lock("cron:x", MINUTE)


async def test_is_locked(locks: tuple[LockManager, LockManager]) -> None:
    assert not await locks[1].is_locked("cron:x")
    await locks[0].acquire_lock("cron:x", MINUTE)
    assert await locks[1].is_locked("cron:x")


async def test_usage_example(locks: tuple[LockManager, LockManager]) -> None:
    ran: list[str] = []

    async def my_cron_job(locks: LockManager, name: str) -> None:
        if not await locks.acquire_lock("cron:my-job", 5 * MINUTE):
            return
        try:
            ran.append(name)
            await both_asked.wait()
        finally:
            await locks.release_lock("cron:my-job")

    both_asked = asyncio.Event()
    first = asyncio.create_task(my_cron_job(locks[0], "one"))
    while not ran:
        await asyncio.sleep(0)
    await my_cron_job(locks[1], "other")
    both_asked.set()
    await first
    assert ran == ["one"]
    assert not await locks[1].is_locked("cron:my-job")


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"REDIS_URL": "redis://:pw@cache:7000/3"}, "redis://:pw@cache:7000/3"),
        ({"REDIS_HOST": "cache"}, "redis://cache:6379/0"),
        ({"REDIS_PORT": "7000"}, "redis://127.0.0.1:7000/0"),
        ({"REDIS_PASSWORD": "p@ss/word"}, "redis://:p%40ss%2Fword@127.0.0.1:6379/0"),
        ({"REDIS_URL": "redis://first", "REDIS_HOST": "second"}, "redis://first"),
    ],
    ids=["REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "URL before host"],
)
def test_environment_variables(
    environment: pytest.MonkeyPatch, variables: dict[str, str], url: str
) -> None:
    environment.delenv("REDIS_URL")
    for name, value in variables.items():
        environment.setenv(name, value)
    assert load().redis == url


async def test_redis_password_is_used(
    own_redis: RedisServer, environment: pytest.MonkeyPatch
) -> None:
    own_redis.cli("config", "set", "requirepass", "s3cret word")
    environment.delenv("REDIS_URL")
    environment.setenv("REDIS_PORT", str(own_redis.port))
    environment.setenv("REDIS_PASSWORD", "s3cret word")
    async with LockManager(load().redis, clock=SystemClock()) as manager:
        assert await manager.acquire_lock("cron:x", MINUTE)


@pytest.mark.parametrize(
    ("job_minutes", "ttl_minutes"), [(0.5, 3), (3, 10), (20, 40)], ids=["short", "medium", "long"]
)
async def test_lock_ttl_guidelines(
    fleet: list[Solocron], redis_server: RedisServer, job_minutes: float, ttl_minutes: int
) -> None:
    """Whatever TTL the guidelines give a job, its lock has it while the job runs."""

    async def body(run: Run) -> None:
        assert 0 <= ttl_minutes * 60 - int(redis_server.cli("ttl", "cron:my-job")) <= 2

    outcomes = await hosted(fleet, body, ttl_ms=ttl_minutes * MINUTE)
    assert [each.state for each in outcomes].count("succeeded") == 1


# -- Benefits ----------------------------------------------------------------------------------


async def test_no_duplicate_execution(fleet: list[Solocron]) -> None:
    """And no race in the database: what the job writes stands there once."""
    database = fleet[0].parts.database
    shops = await open_shops(database, 50)
    for _ in range(3):
        await all_run(fleet, "store-auto-close")
    assert await closings(database) == [(each, 1) for each in shops]
    assert len(await runs(database, "store-auto-close")) == 1


async def test_websocket_notifications_sent_only_once(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("SOLOCRON_PORT", "0")
    async with AsyncExitStack() as stack:
        fleet = [Solocron(load()) for _ in range(3)]
        await fleet[0].parts.database.migrate()
        servers = [await stack.enter_async_context(each.serving()) for each in fleet]
        shops = await open_shops(fleet[0].parts.database, 20)
        heard = [Listener() for _ in servers]
        sockets = [await stack.enter_async_context(connected(each.port)) for each in servers]
        for ws in sockets:
            await subscribe(ws, dict.fromkeys(shops))
        await all_run(fleet, "store-auto-close")
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(each.listen(ws, len(shops)) for each, ws in zip(heard, sockets, strict=True))
            )
        for each in heard:
            each.assert_each_once(shops)


async def test_email_and_sms_notifications_sent_only_once(settings: pytest.MonkeyPatch) -> None:
    """By a real mail server, and a gateway as SMS services have one."""
    async with mail_server() as mail, http_server() as gateway, AsyncExitStack() as stack:
        settings.setenv(
            "SOLOCRON_NOTIFY_URLS", f"mail={mail.url()} sms=json://127.0.0.1:{gateway.port}/sms"
        )
        fleet = [Solocron(load()) for _ in range(3)]
        await fleet[0].parts.database.migrate()
        for cron in fleet:
            await stack.enter_async_context(cron)
        shops = await open_shops(fleet[0].parts.database, 5)
        for _ in range(3):
            await all_run(fleet, "store-auto-close")
        done = {"pending": 0, "sent": 5, "dead": 0, "skipped": 0}
        async with asyncio.timeout(30):
            while (await fleet[0].status())["deliveries"] != [
                {"channel": "mail", **done}, {"channel": "sms", **done},
            ]:  # fmt: skip
                await asyncio.sleep(0.05)
    assert sorted(message["Subject"] for message in mail.taken) == [
        f"{shop} is closed" for shop in shops
    ]
    assert len(gateway.taken) == 5


async def test_automatic_recovery(fleet: list[Solocron]) -> None:
    """A server that crashes with the lock and the run in hand needs nobody's help."""
    crashed = fleet[0].parts
    job = fleet[0].jobs["store-auto-close"]
    tick = latest(job)
    await crashed.locks.claim(job.lock_key, tick, job.ttl_ms, lease_ms=200)
    crashed.locks._renewals._leases.clear()  # it renews no more
    await crashed.ledger.begin(
        job.name, tick, owner="crashed", now_ms=tick, lease_ms=200, max_attempts=3
    )
    async with asyncio.timeout(10):
        while (await fleet[1].parts.runner.run_tick(job, tick)).state != "succeeded":
            await asyncio.sleep(0.05)
    assert await runs(fleet[1].parts.database, job.name) == [(tick, 2, "succeeded")]


async def test_scalable_with_minimal_redis_overhead(
    fleet: list[Solocron], redis_server: RedisServer
) -> None:
    async def body(run: Run) -> None: ...

    await hosted(fleet, body)
    redis_server.cli("config", "resetstat")
    losers = await hosted(fleet, body)  # the tick is settled: all of them lose
    assert {each.reason for each in losers} == {"done"}
    assert "cmdstat_evalsha:calls=3," in redis_server.cli("info", "commandstats")


async def test_graceful_handling_of_redis_connection_issues(
    own_redis: RedisServer, settings: pytest.MonkeyPatch
) -> None:
    settings.setenv("REDIS_URL", own_redis.url)
    settings.setenv("SOLOCRON_REDIS_DEADLINE", "0.2")
    async with Solocron(load()) as cron:
        await cron.parts.database.migrate()
        own_redis.stop()
        with pytest.raises(LockUnavailable):
            await cron.parts.locks.acquire_lock("cron:x", MINUTE)
        own_redis.start()
        async with asyncio.timeout(10):
            while not await lock_again(cron.parts.locks):
                await asyncio.sleep(0.05)


async def lock_again(locks: LockManager) -> bool:
    try:
        return await locks.acquire_lock("cron:x", MINUTE)
    except LockUnavailable:
        return False


async def test_jobs_continue_to_work_even_if_redis_is_temporarily_unavailable(
    own_redis: RedisServer, settings: pytest.MonkeyPatch
) -> None:
    settings.setenv("REDIS_URL", own_redis.url)
    settings.setenv("SOLOCRON_REDIS_DEADLINE", "0.2")
    own_redis.stop()
    async with Solocron(load()) as one, Solocron(load()) as other:
        await one.parts.database.migrate()
        outcomes = await all_run([one, other], "store-auto-close")
        assert sorted(each.state for each in outcomes) == ["skipped", "succeeded"]


# -- Monitoring --------------------------------------------------------------------------------


async def test_log_messages(settings: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "solocron")
    async with Solocron(load()) as one, Solocron(load()) as other:
        await one.parts.database.migrate()
        await all_run([one, other], "store-auto-close")
    said = {record.getMessage() for record in caplog.records}
    assert said >= {
        "✅ Redis connected for distributed locks",
        "✅ Redis ready for distributed locks",
        "Another server is running the store auto-close cron, skipping.",
        "Starting store auto-close cron job...",
        "Store auto-close cron job completed successfully",
    }


@pytest.mark.parametrize(
    ("name", "key"), [("store-auto-close", AUTO_CLOSE), ("store-open-reminder", OPEN_REMINDER)]
)
async def test_redis_keys(
    fleet: list[Solocron], redis_server: RedisServer, name: str, key: str
) -> None:
    job = fleet[0].jobs[name]
    await fleet[0].parts.locks.claim(job.lock_key, latest(job), job.ttl_ms)
    assert redis_server.cli("keys", "cron:*") == key


async def test_health_checks(fleet: list[Solocron]) -> None:
    job = fleet[0].jobs["store-auto-close"]
    assert not await fleet[1].parts.locks.is_locked(AUTO_CLOSE)
    await fleet[0].parts.locks.claim(job.lock_key, latest(job), job.ttl_ms)
    assert await fleet[1].parts.locks.is_locked(AUTO_CLOSE)


# -- Troubleshooting -----------------------------------------------------------------------------


async def test_lock_never_expires(fleet: list[Solocron], redis_server: RedisServer) -> None:
    """No lock is without a TTL, whatever the job does."""

    async def body(run: Run) -> None:
        for key in redis_server.cli("keys", "*").split():
            assert int(redis_server.cli("pttl", key)) > 0, key

    assert [each.state for each in await hosted(fleet, body)].count("succeeded") == 1


async def test_redis_connection_issues(
    own_redis: RedisServer, settings: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is said, once, and the job runs by the ledger."""
    settings.setenv("REDIS_URL", own_redis.url)
    settings.setenv("SOLOCRON_REDIS_DEADLINE", "0.2")
    async with Solocron(load()) as cron:
        await cron.parts.database.migrate()
        await cron.parts.locks.is_locked("cron:x")
        own_redis.stop()
        for _ in range(2):
            await all_run([cron], "store-auto-close")
        said = [r.getMessage() for r in caplog.records if "lost for distributed" in r.getMessage()]
        assert len(said) == 1
        assert len(await runs(cron.parts.database, "store-auto-close")) == 1


async def test_jobs_not_running(fleet: list[Solocron], caplog: pytest.LogCaptureFixture) -> None:
    """The skipping message says which tick was skipped, and who holds the lock."""
    caplog.set_level(logging.INFO, "solocron")
    job = fleet[0].jobs["store-auto-close"]
    tick = latest(job)
    await fleet[0].parts.locks.claim(job.lock_key, tick, job.ttl_ms)
    assert (await fleet[1].parts.runner.run_tick(job, tick)).reason == "held"
    skipping = next(r for r in caplog.records if "skipping" in r.getMessage())
    fields = skipping.__dict__
    assert (fields["job"], fields["tick"], fields["reason"]) == (job.name, tick, "held")
    assert fields["detail"].endswith(f":{tick}")


async def test_debug_commands(fleet: list[Solocron], redis_server: RedisServer) -> None:
    job = fleet[0].jobs["store-auto-close"]
    await fleet[0].parts.locks.claim(job.lock_key, latest(job), job.ttl_ms)
    assert redis_server.cli("keys", "cron:*") == AUTO_CLOSE
    assert redis_server.cli("ttl", AUTO_CLOSE) in ("599", "600")
    assert redis_server.cli("del", AUTO_CLOSE) == "1"
    assert not await fleet[1].parts.locks.is_locked(AUTO_CLOSE)


# -- Best practices --------------------------------------------------------------------------------


async def test_always_use_try_finally(locks: tuple[LockManager, LockManager]) -> None:
    """`hold` is the try and the finally."""
    with pytest.raises(ZeroDivisionError):
        async with locks[0].hold("cron:x", MINUTE):
            raise ZeroDivisionError
    assert not await locks[1].is_locked("cron:x")


async def test_set_appropriate_ttl(redis_server: RedisServer) -> None:
    """Too short is renewed while its owner lives; too long is cut to the lease when it dies."""
    short = LockManager(redis_server.url, clock=SystemClock(), lease_ms=200)
    async with short, LockManager(redis_server.url, clock=SystemClock()) as other:
        async with short.hold("cron:x", 150) as lease:
            first = lease.deadline_s
            while lease.deadline_s < first + 0.4:
                await asyncio.sleep(0.01)
            assert await other.is_locked("cron:x")
        await short.claim("cron:y", 1000, 60 * MINUTE)
        short._renewals._leases.clear()  # its owner dies
        async with asyncio.timeout(5):
            while type(await other.claim("cron:y", 1000, MINUTE)).__name__ != "Granted":
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(("environment_name", "key"), [
    ("", "cron:store-auto-close"), ("production", "cron:store-auto-close:production"),
])  # fmt: skip
def test_use_descriptive_lock_keys(
    settings: pytest.MonkeyPatch, environment_name: str, key: str
) -> None:
    settings.setenv("SOLOCRON_ENVIRONMENT", environment_name)
    assert Solocron(load()).jobs["store-auto-close"].lock_key == key


async def test_monitor_lock_duration(
    fleet: list[Solocron], caplog: pytest.LogCaptureFixture
) -> None:
    """Start and end are logged with the duration, which the statistics add up."""
    caplog.set_level(logging.INFO, "solocron")
    await all_run(fleet[:1], "store-auto-close")
    messages = [r.getMessage() for r in caplog.records if r.name == "solocron.job"]
    assert messages[0] == "Starting store auto-close cron job..."
    assert caplog.records[-1].__dict__["duration_ms"] >= 0
    assert fleet[0].parts.locks.statistics.of(AUTO_CLOSE).hold_ms > 0


async def test_test_with_multiple_servers(fleet: list[Solocron]) -> None:
    """`solocron demo --once` does so with real processes; here, an own job on three servers."""
    ran: list[int] = []
    for number, cron in enumerate(fleet):
        await cron.stop()

        async def tell(run: Run, number: int = number) -> None:
            ran.append(number)

        cron.job("* * * * *", name="tell", ttl=timedelta(minutes=2))(tell)
    async with AsyncExitStack() as stack:
        for cron in fleet:
            await stack.enter_async_context(cron)
        await all_run(fleet, "tell")
        await all_run(fleet, "tell")
    assert len(ran) == 1


# -- Future enhancements ---------------------------------------------------------------------------


async def test_lock_renewal(redis_server: RedisServer) -> None:
    locks = LockManager(redis_server.url, clock=SystemClock(), lease_ms=300)
    async with locks, locks.hold("cron:x", 300) as lease:
        first = lease.deadline_s
        while lease.deadline_s < first + 1.0:  # far past its TTL
            await asyncio.sleep(0.01)
        lease.ensure()
    assert locks.statistics.of("cron:x").renewals >= 3


async def test_lock_statistics(locks: tuple[LockManager, LockManager]) -> None:
    one, other = locks
    assert one.statistics.of("cron:x").success_rate is None
    async with one.hold("cron:x", MINUTE):
        for _ in range(3):
            await other.acquire_lock("cron:x", MINUTE)
    await other.acquire_lock("cron:x", MINUTE)
    counts = other.statistics.snapshot()["cron:x"]
    assert (counts.acquired, counts.held, counts.success_rate) == (1, 3, 0.25)
    assert one.statistics.of("cron:x").hold_ms > 0


async def test_lost_leases_are_counted(redis_server: RedisServer) -> None:
    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        with pytest.raises(LeaseLost):
            async with locks.hold("cron:x", MINUTE):
                redis_server.cli("del", "cron:x")
                await asyncio.Event().wait()
        assert locks.statistics.of("cron:x").lost == 1


async def test_health_dashboard(settings: pytest.MonkeyPatch) -> None:
    """A page says how each job is; what stands in it is escaped, and a token is asked for."""
    settings.setenv("SOLOCRON_AUTH_SECRET", SECRET)
    cron = Solocron(load())
    async with cron.serving() as server, aiohttp.ClientSession() as http:
        await cron.parts.database.migrate()
        await all_run([cron], "store-auto-close")
        job = cron.jobs["store-open-reminder"]
        now = int(SystemClock().now_ms())
        await cron.parts.ledger.begin(
            job.name, now, owner="w", now_ms=now, lease_ms=1, max_attempts=1
        )
        await cron.parts.ledger.finish(
            RunKey(job.name, now, 1), now_ms=now, duration_ms=7, error="<script>alert(1)</script>"
        )
        url = f"http://127.0.0.1:{server.port}/dashboard"
        token = cron.parts.authenticator.issue(
            subject="on call", stores=[], scopes=["jobs:run"], lifetime_s=60
        )
        pair = base64.b64encode(f"me:{token}".encode()).decode()
        async with http.get(url) as refused:
            assert (refused.status, refused.headers["WWW-Authenticate"][:5]) == (401, "Basic")
        async with http.get(url, headers={"Authorization": f"Basic {pair}"}) as answer:
            assert answer.status == 200
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            page = await answer.text()
    assert "store-auto-close" in page and "succeeded" in page and "100 %" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page
    assert 'Redis <strong class="good">up</strong>' in page


async def test_alerting(
    own_redis: RedisServer, settings: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs that fail to get their locks repeatedly are told of, once, and once when they do."""
    settings.setenv("REDIS_URL", own_redis.url)
    settings.setenv("SOLOCRON_REDIS_DEADLINE", "0.2")
    async with Solocron(load()) as cron:
        await cron.parts.database.migrate()
        own_redis.stop()
        for _ in range(ALARM_AFTER + 2):
            await all_run([cron], "store-auto-close")
        own_redis.start()
        async with asyncio.timeout(10):
            while cron.parts.runner.alarm.raised:
                await all_run([cron], "store-auto-close")
    said = [r.getMessage() for r in caplog.records]
    raised = [each for each in said if each.startswith("ALARM: ")]
    assert len(raised) == 1 and "failed to get its lock 3 times in a row" in raised[0]
    assert [each for each in said if each.startswith("RESOLVED: ")] == [
        "RESOLVED: the store auto-close cron gets its lock again"
    ]
