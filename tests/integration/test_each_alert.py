"""Every alert there is, end to end: two workers find it and one tells, once; then that it is over,
once. Real Redis, PostgreSQL, workers and receiver."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from socket import gethostname

import pytest
from sqlalchemy import update
from test_alerts import Fleet, calm, fails, fleet, job, quick
from test_clock_skew import HOUR, WrongClock

from conftest import RedisServer
from mailing import tell
from proxy import Proxy
from services import HttpServer
from solocron.alerts.rules import KINDS
from solocron.clock import SystemClock
from solocron.cron.alarm import ALARM_AFTER
from solocron.cron.job import Body, Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.storage.engine import Database
from solocron.storage.tables import deliveries
from workers import NEVER, Worker, prepare, until

__all__ = ["calm"]

DEAD_URL = "sms=json://127.0.0.1:1/none"
DIFFERING = {"SOLOCRON_ALERT_AFTER": "0.1", "SOLOCRON_LEASE": "1"}  # told after 3.6 s
PATIENT = {"SOLOCRON_ALERT_AFTER": "60"}


@dataclass
class Place:
    """Where it happens, and what is tidied up afterwards."""

    fleet: Fleet
    redis: RedisServer
    proxy: Proxy
    clock: WrongClock
    database: str
    stack: AsyncExitStack
    tick: int = field(default_factory=lambda: int(SystemClock().now_ms()))

    async def run_on_both(self) -> None:
        for number in range(len(self.fleet.workers)):
            self.tick += 1
            await self.fleet.run(number, self.tick)

    async def start_worker(self) -> Worker:
        worker = await Worker.start(redis=self.redis.url, database=self.database)
        self.stack.push_async_callback(worker.stop)
        return worker


Act = Callable[[Place], Awaitable[object]]


@dataclass
class Scene:
    """How an alert comes about, and how it ends; `about` is the job of it, or the worker."""

    begin: Act
    end: Act
    about: str = "-"
    jobs: Callable[[], tuple[Job, Job]] = lambda: (job(), job())
    settings: Mapping[str, str] = field(default_factory=dict)


def switched(broken: Callable[[Run], Awaitable[None]]) -> Scene:
    """A job that does `broken` until it is mended."""
    is_mended = asyncio.Event()

    async def body(run: Run) -> None:
        await (quick if is_mended.is_set() else broken)(run)

    async def begin(place: Place) -> None:
        await place.run_on_both()

    async def end(place: Place) -> None:
        is_mended.set()
        await place.run_on_both()

    return Scene(begin, end, "one", lambda: both(body, attempts=1))


def both(body: Body = quick, **options: int) -> tuple[Job, Job]:
    return job(body, **options), job(body, **options)


def overrun() -> Scene:
    enough = asyncio.Event()

    async def slow(run: Run) -> None:
        await enough.wait()

    async def begin(place: Place) -> None:
        running = asyncio.create_task(place.fleet.run(0, place.tick))
        place.stack.push_async_callback(asyncio.wait, [running])
        place.stack.callback(enough.set)

    async def end(place: Place) -> None:
        enough.set()

    return Scene(begin, end, "one", lambda: both(slow, expected_ms=200))


def missed() -> Scene:
    async def begin(place: Place) -> None:
        for cron in place.fleet.workers:
            cron.parts.runner.say_missed(cron.jobs["one"], [place.tick - 60_000])

    return Scene(begin, Place.run_on_both, "one")


def locked() -> Scene:
    """In the lock's place is what no lock is; it is over before Redis counts as away for that."""

    async def begin(place: Place) -> None:
        place.redis.cli("HSET", "cron:one", "no", "lock")
        for _ in range(ALARM_AFTER):
            await place.run_on_both()

    async def end(place: Place) -> None:
        place.redis.cli("DEL", "cron:one")
        await place.run_on_both()

    return Scene(begin, end, "one", settings=PATIENT)


def redis_down() -> Scene:
    async def begin(place: Place) -> None:
        place.redis.stop()

    async def end(place: Place) -> None:
        place.redis.start()

    return Scene(begin, end)


def database_down() -> Scene:
    return Scene(lambda place: place.proxy.down(), lambda place: place.proxy.up())


def wrong_clock() -> Scene:
    async def begin(place: Place) -> None:
        place.clock.wrong_ms = 3 * HOUR

    async def end(place: Place) -> None:
        place.clock.wrong_ms = 0

    return Scene(begin, end)


def differing() -> Scene:
    async def begin(place: Place) -> None:
        return None  # they start so

    return Scene(
        begin, lambda place: place.fleet.workers.pop().stop(), "one",
        lambda: (job(), job(schedule="0 0 2 1 *")), DIFFERING,
    )  # fmt: skip


def silent() -> Scene:
    async def begin(place: Place) -> None:
        third = await place.start_worker()
        await until(lambda: place.fleet.knows_of(3))
        scene.about = await place.fleet.name_of(third)
        await third.kill()

    scene = Scene(begin, Place.start_worker)  # in its place
    return scene


def dead_letters() -> Scene:
    async def begin(place: Place) -> None:
        database = Database(place.database)
        place.stack.push_async_callback(database.close)
        await tell(database, [DEAD_URL], "a")

    async def end(place: Place) -> None:
        async with place.fleet.workers[0].parts.database.begin() as connection:
            await connection.execute(update(deliveries).values(state="skipped"))

    return Scene(
        begin, end,
        settings={"SOLOCRON_NOTIFY_URLS": DEAD_URL, "SOLOCRON_NOTIFY_ATTEMPTS": "1"},
    )  # fmt: skip


SCENES: Mapping[str, Callable[[], Scene]] = {
    "lock-unavailable": locked,
    "job-failed": lambda: switched(fails),
    "job-overran": overrun,
    "tick-missed": missed,
    "redis-down": redis_down,
    "database-down": database_down,
    "clock-skew": wrong_clock,
    "schedules-differ": differing,
    "worker-silent": silent,
    "dead-letters": dead_letters,
}


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.to_postgres(postgres_url) as proxy:
        yield proxy


@pytest.mark.parametrize("name", KINDS)  # one without a scene fails
async def test_an_alert_is_told_once_and_its_end_once(
    name: str, calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer,
    postgres_url: str, proxy: Proxy,
) -> None:  # fmt: skip
    scene, clock = SCENES[name](), WrongClock()
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("DATABASE_URL", database := proxy.postgres_url(postgres_url))
    for variable, value in scene.settings.items():
        calm.setenv(variable, value)
    async with fleet(http, *scene.jobs(), clock=clock) as here, AsyncExitStack() as stack:
        place = Place(here, own_redis, proxy, clock, database, stack)
        await scene.begin(place)
        raised, over = (f"{each} {name} {scene.about}" for each in ("alarm", "resolved"))
        await here.hears(raised)
        await here.silent(raised)
        await scene.end(place)
        await here.hears(raised, over)
        await here.silent(raised, over)
        await until(here.is_calm)
    told, ended = http.taken
    assert told["type"] == {"critical": "failure", "warning": "warning"}[KINDS[name].severity]
    assert ended["type"] == "success"
    ids = [body["message"].splitlines()[-1].split()[-1] for body in (told, ended)]
    since = [re.findall("Since ([^,]*), ", body["message"]) for body in (told, ended)]
    assert ids[0] == ids[1] and since[0] == since[1] != []
    assert f"Told by {gethostname()}:{os.getpid()}:" in told["message"]


def test_there_is_no_scene_of_what_is_no_alert() -> None:
    assert set(SCENES) == set(KINDS)


async def test_schedules_of_servers_that_are_gone_do_not_differ(
    calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer, postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A rolling deploy changes a schedule: the old servers are killed, or stop in time."""
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("DATABASE_URL", postgres_url)
    for variable, value in DIFFERING.items():
        calm.setenv(variable, value)
    await (await prepare(postgres_url)).close()
    before = {"redis": own_redis.url, "database": postgres_url, "sweep": 0.2,
              "job": {"name": "w", "schedule": "0 0 2 1 *"}}  # fmt: skip
    killed, stopped = await Worker.start(**before), await Worker.start(**before)
    job = Job(name="tick-test", calendar=Calendar(NEVER), body=quick)
    async with fleet(http, job, replace(job)) as here:
        await until(lambda: here.knows_of(4))
        await killed.kill()
        await stopped.stop()
        await until(lambda: here.knows_of(3))
        await asyncio.sleep(5)
        assert not [each for each in here.told if "schedule" in each]
    assert "schedule" not in caplog.text


async def test_each_silent_worker_is_told_and_a_redis_that_forgets_them_ends_none(
    calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer, postgres_url: str
) -> None:
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("DATABASE_URL", postgres_url)
    calm.setenv("SOLOCRON_ALERT_AFTER", "60")  # of Redis itself nothing is told
    options = {"redis": own_redis.url, "database": postgres_url, "sweep": 0.2}
    async with fleet(http) as here, AsyncExitStack() as stack:
        killed, frozen = await Worker.start(**options), await Worker.start(**options)
        await until(lambda: here.knows_of(4))
        await until(here.has_heard_of_all)  # else the last to start may be in another's place
        names = [await here.name_of(each) for each in (killed, frozen)]
        raised = [f"alarm worker-silent {each}" for each in names]
        over = [f"resolved worker-silent {each}" for each in names]
        await killed.kill()
        await here.hears(raised[0])
        frozen.signal(signal.SIGSTOP)
        stack.push_async_callback(frozen.kill)
        await here.hears(*raised)
        assert {each.job for each in await here.workers[0].parts.alerts.fleet()} == {*names}
        for within_s in (0.0, 1.0):  # a moment, and longer than it takes to see that it is away
            own_redis.stop()
            await asyncio.sleep(within_s)
            own_redis.start()
            await until(lambda: here.knows_of(2))
        await asyncio.sleep(4)  # longer than a worker may be silent
        await here.silent(*raised)
        frozen.signal(signal.SIGCONT)
        await here.hears(*raised, over[1])
        await here.silent(*raised, over[1])
        stack.push_async_callback((await Worker.start(**options)).stop)
        await here.hears(*raised, *over)
        await until(here.is_calm)


async def test_of_locks_that_cannot_be_had_for_a_redis_that_is_away_nothing_more_is_told(
    calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer, postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("DATABASE_URL", postgres_url)
    async with fleet(http, *both()) as here:
        own_redis.stop()
        await here.hears("alarm redis-down -")
        await until(lambda: here.all_raised("redis-down"))
        tick = int(SystemClock().now_ms())
        for later in range(ALARM_AFTER + 1):
            for worker in (0, 1):
                await here.run(worker, tick + later)
        await here.silent("alarm redis-down -")
    assert "failed to get its lock" not in caplog.text
