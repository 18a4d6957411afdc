"""Each alert is told once, and its end once, whichever of two workers finds it."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from commands import Cli
from conftest import RedisServer
from proxy import Proxy
from services import HttpServer, http_server
from solocron.clock import Clock, SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.journal import Entry
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.service import Solocron
from solocron.settings import load
from workers import NEVER, Worker, until

QUIET_S = 1.0  # for what must not come


async def quick(run: Run) -> None:
    return None


async def fails(run: Run) -> None:
    raise ValueError("no stock")


def job(body: Body = quick, schedule: str = NEVER, **options: Any) -> Job:
    return Job(name="one", calendar=Calendar(schedule), body=body, backoff_ms=1, **options)


class Fleet:
    """Workers, and what the receiver was told: `raised redis-down -` and the like."""

    def __init__(self, http: HttpServer, workers: list[Solocron]) -> None:
        self.http, self.workers = http, workers

    @property
    def told(self) -> list[str]:
        lines = [body["message"].splitlines()[-1] for body in self.http.taken]
        return [" ".join(each.strip("()").split()[:3]) for each in lines]

    async def hears(self, *wanted: str) -> None:
        """Wait until this was told, and see that nothing else is."""
        try:
            await self.hears_of(len(wanted))
        finally:
            assert sorted(self.told) == sorted(wanted)

    async def hears_of(self, count: int) -> None:
        async def heard() -> bool:
            return len(self.told) >= count

        await until(heard, 30)

    async def silent(self, *wanted: str) -> None:
        await asyncio.sleep(QUIET_S)
        assert sorted(self.told) == sorted(wanted)

    async def run(self, worker: int, tick: int) -> None:
        cron = self.workers[worker]
        await cron.parts.runner.run_tick(cron.jobs["one"], tick)

    def raised(self, worker: int) -> list[str]:
        return [each.name for each in self.workers[worker].parts.alerts.current()]

    async def all_raised(self, name: str) -> bool:
        """Whether it is raised at each worker."""
        return all(name in self.raised(each) for each in range(len(self.workers)))

    async def knows_of(self, workers: int) -> bool:
        """Whether so many are on the board."""
        return len(await self.workers[0].parts.board.workers()) == workers

    async def has_heard_of_all(self) -> bool:
        """Whether each worker has told of itself since the last one started."""
        found = await self.workers[0].parts.board.workers()
        return min(each.seen_ms for each in found) > max(each.started_ms for each in found)

    async def name_of(self, worker: Worker) -> str:
        """Its name on the board."""
        found = await self.workers[0].parts.board.workers()
        return next(each.worker for each in found if each.pid == worker.process.pid)

    async def is_calm(self) -> bool:
        """Whether no worker knows of an alert."""
        alerts = [each.parts.alerts for each in self.workers]
        return not any([each.current() or await each.fleet() for each in alerts])


@pytest.fixture
def calm(environment: pytest.MonkeyPatch, http: HttpServer) -> pytest.MonkeyPatch:
    """Settings of workers whose jobs never come due, and that soon have an alert."""
    for name in ("AUTO_CLOSE", "OPEN_REMINDER"):
        environment.setenv(f"SOLOCRON_STORE_{name}_SCHEDULE", NEVER)
    environment.setenv("SOLOCRON_SWEEP", "0.2")
    environment.setenv("SOLOCRON_ALERT_AFTER", "0.5")
    environment.setenv("SOLOCRON_REDIS_DEADLINE", "0.3")
    environment.setenv("SOLOCRON_ALERT_URLS", f"ops=json://127.0.0.1:{http.port}/hook")
    return environment


@asynccontextmanager
async def fleet(http: HttpServer, *jobs: Job, clock: Clock | None = None) -> AsyncIterator[Fleet]:
    """A worker for each job, or two without one, that are up."""
    workers = [Solocron(load(), clock=clock) for _ in jobs or (1, 2)]
    for cron, each in zip(workers, jobs, strict=False):
        cron.add(each)
    if workers[0].parts.stored is not None:
        await workers[0].parts.database.migrate()
    async with AsyncExitStack() as stack:
        for cron in workers:
            await stack.enter_async_context(cron)

        async def up() -> bool:
            return all(each.parts.locks.link.is_up for each in workers)

        await until(up)
        yield Fleet(http, workers)


async def test_a_failed_job_is_told_once_and_its_success_elsewhere_once(
    calm: pytest.MonkeyPatch, http: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(http, job(fails, attempts=1), job()) as here:
        now = int(SystemClock().now_ms())
        await here.run(0, now)
        await here.hears("alarm job-failed one")
        assert "no stock" in http.taken[0]["message"]
        await here.run(0, now + 1)  # again: no news
        assert here.raised(0) == ["job-failed"] and here.raised(1) == []
        for worker in here.workers:
            (alert,) = await worker.parts.alerts.fleet()
            assert (alert.name, alert.job, alert.severity) == ("job-failed", "one", "critical")
        await here.run(1, now + 2)
        await here.hears("alarm job-failed one", "resolved job-failed one")
        await until(here.is_calm)
        await here.silent("alarm job-failed one", "resolved job-failed one")
    said = Counter(
        r.getMessage().split(":")[0] for r in caplog.records if r.name.endswith("alerts")
    )
    assert said == {"ALARM": 1, "RESOLVED": 1}


async def test_with_both_down_each_worker_tells_and_the_end_is_told_once(
    calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer, postgres_url: str
) -> None:
    calm.setenv("REDIS_URL", own_redis.url)
    names = ["redis-down -", "database-down -"]
    async with Proxy.to_postgres(postgres_url) as proxy:
        calm.setenv("DATABASE_URL", proxy.postgres_url(postgres_url))
        async with fleet(http) as here:
            own_redis.stop()
            await proxy.down()
            raised = [f"alarm {each}" for each in names]
            await here.hears_of(4)
            assert Counter(here.told) == {each: 2 for each in raised}
            own_redis.start()
            await proxy.up()
            over = [f"resolved {each}" for each in names]
            await here.hears(*raised, *raised, *over)
            await here.silent(*raised, *raised, *over)


async def test_without_a_database_that_decides_none_is_said_to(
    calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer, postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    calm.setenv("REDIS_URL", own_redis.url)
    async with Proxy.to_postgres(postgres_url) as proxy:
        calm.setenv("DATABASE_URL", proxy.postgres_url(postgres_url))
        async with fleet(http) as here:
            await proxy.down()
            await until(lambda: here.all_raised("database-down"))
            own_redis.stop()
            await until(lambda: here.all_raised("redis-down"))
    alarms = {each.getMessage() for each in caplog.records if each.levelname == "ERROR"}
    assert alarms == {
        "ALARM: the database is away: no tick is run",
        "ALARM: Redis is away, and so is the database: no tick is run",
    }


@pytest.mark.parametrize("kept_in", ["database", "redis"])
async def test_the_command_lists_what_is_raised_and_says_what_is_not_known(
    calm: pytest.MonkeyPatch, http: HttpServer, own_redis: RedisServer, postgres_url: str,
    tmp_path: Path, kept_in: str,
) -> None:  # fmt: skip
    stored = kept_in == "database"
    calm.setenv("REDIS_URL", own_redis.url)
    async with Proxy.to_postgres(postgres_url) as proxy:
        database = proxy.postgres_url(postgres_url) if stored else "none"
        calm.setenv("DATABASE_URL", database)
        cli = Cli(tmp_path, {"REDIS_URL": own_redis.url, "DATABASE_URL": database})
        async with fleet(http, job(fails, attempts=1)) as here:
            assert (await cli("alerts")).out == "No alert is raised.\n"
            now = int(SystemClock().now_ms())
            await here.run(0, now)
            await here.hears("alarm job-failed one")
            listed = await cli("alerts", "--json")
            assert (listed.code, listed.err) == (0, "")
            told = {"alert": "job-failed", "job": "one", "severity": "critical", "since": now,
                    "detail": "the one cron failed: ValueError: no stock"}  # fmt: skip
            assert json.loads(listed.out) == [told]
            table = (await cli("alerts")).out
            assert re.search(r"job-failed .* one .* critical .*\+00:00 .* no stock", table)
        if stored:
            await proxy.down()
            without = await cli("alerts", "--json")
            assert (without.code, json.loads(without.out)) == (0, [told])
            assert "the database does not answer: what was raised" in without.complaint
            await proxy.up()
        own_redis.stop()
        without = await cli("alerts", "--json")
        assert without.complaint.startswith("solocron: Redis does not answer: ")
        if stored:
            assert (without.code, json.loads(without.out)) == (0, [told])
            await proxy.down()
            without = await cli("alerts")
            assert without.complaint.startswith("solocron: neither Redis nor the database")
        assert (without.code, without.out) == (3, "")
        await cli.close()


async def test_a_worker_that_dies_leaves_no_condition_raised(
    calm: pytest.MonkeyPatch, http: HttpServer
) -> None:
    async def slow(run: Run) -> None:
        await asyncio.Event().wait()

    calm.setenv("SOLOCRON_GRACE", "0")
    async with fleet(http, job(slow, expected_ms=200), job()) as here:
        running = asyncio.create_task(here.run(0, int(SystemClock().now_ms())))
        await here.hears("alarm job-overran one")
        await here.workers[0].stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await here.workers[0].parts.database.close()  # its run went on for a moment

        async def none_stands() -> bool:
            return not await here.workers[1].parts.alerts.fleet()

        await until(none_stands)


async def test_what_cannot_be_sent_is_sent_later_and_a_hung_channel_keeps_nobody(
    calm: pytest.MonkeyPatch, http: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [500, 500]
    http.status = lambda: answers.pop() if answers else 200
    async with http_server() as hung:
        hung.answers.clear()
        urls = [f"json://127.0.0.1:{port}/s3cret" for port in (http.port, hung.port)]
        calm.setenv("SOLOCRON_ALERT_URLS", " ".join(urls))
        async with fleet(http, job()) as here:
            here.workers[0].parts.runner.journal.note(Entry("one", 1, "failed", "no stock"))
            await here.hears("alarm job-failed one")
            await here.run(0, int(SystemClock().now_ms()))
            await here.hears("alarm job-failed one", "resolved job-failed one")
    assert "fails, will try again: " in caplog.text and "s3cret" not in caplog.text
