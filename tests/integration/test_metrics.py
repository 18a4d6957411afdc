"""`/metrics` of a real service: read by Prometheus's own parser, and true after real runs."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
from test_web import READER, Api, put, token

from clients import connected, subscribe
from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.journal import Entry
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import StorageUnavailable
from solocron.locks.manager import LockManager
from solocron.locks.results import Granted
from solocron.service import Solocron
from solocron.settings import load
from workers import NEVER

SCRAPER = token(scope="metrics:read", stores=[])


class Scrape:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        self.kinds: dict[str, str] = {}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in parser.text_string_to_metric_families(text):
            self.kinds[family.name] = family.type
            for each in family.samples:
                place = (each.name, frozenset(each.labels.items()))
                assert place not in self.samples, f"{place} comes twice"
                self.samples[place] = each.value

    def value(self, name: str, **labels: str) -> float:
        return self.samples[f"solocron_{name}", frozenset(labels.items())]

    def values(self, name: str, *labels: str) -> dict[Any, float]:
        """By the values of the labels, those that are 0 left out."""
        found = {
            tuple(dict(of)[each] for each in labels): value
            for (each_name, of), value in self.samples.items()
            if each_name == f"solocron_{name}" and value
        }
        return {place if len(labels) > 1 else place[0]: value for place, value in found.items()}


async def scrape(api: Api) -> Scrape:
    status, text = await api.call("GET", "/metrics", auth=SCRAPER)
    assert status == 200, text
    return Scrape(text)


async def quick(run: Run) -> None:
    return None


async def fails(run: Run) -> None:
    raise ValueError("no stock")


def resting() -> Calendar:
    """Due half an hour ago, and in half an hour: never while a test runs."""
    minute = int(SystemClock().now_ms() // 60_000 + 30) % 60
    return Calendar(f"{minute} * * * *")


def job(name: str, body: Body = quick, **options: Any) -> Job:
    return Job(name=name, calendar=resting(), body=body, backoff_ms=1, **options)


class World:
    """A service, and what its journal told."""

    def __init__(self, api: Api, entries: list[Entry]) -> None:
        self.api, self.cron, self.entries = api, api.cron, entries
        self.tick = resting().latest_at(SystemClock().now_ms()) or 0

    async def run(self, name: str, tick: int | None = None, origin: str = "schedule") -> None:
        run_tick = self.cron.parts.runner.run_tick
        await run_tick(self.cron.jobs[name], tick or self.tick, origin=origin)


@asynccontextmanager
async def world(*jobs: Job) -> AsyncIterator[World]:
    cron, entries = Solocron(load()), list[Entry]()
    for each in jobs:
        cron.add(each)
    cron.parts.runner.journal.listen(entries.append)
    async with cron.serving() as server, aiohttp.ClientSession() as http:
        api = Api(cron, server.port, http)
        await api.ready()
        yield World(api, entries)


@pytest.fixture
def calm(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Settings with which nothing runs by itself."""
    for name in ("AUTO_CLOSE", "OPEN_REMINDER"):
        environment.setenv(f"SOLOCRON_STORE_{name}_SCHEDULE", NEVER)
    environment.setenv("SOLOCRON_SWEEP", "3600")
    environment.setenv("SOLOCRON_LEASE", "1")
    return environment


async def true(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_became_of_ticks_is_counted_as_the_journal_has_it(
    calm: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    async def loses(run: Run) -> None:
        redis_server.cli("DEL", "cron:loses")
        await asyncio.Event().wait()

    jobs = [job("quick"), job("fails", fails, attempts=2), job("loses", loses), job("waits")]
    async with world(*jobs) as here, LockManager(redis_server.url) as other:
        await here.run("quick")
        await here.run("quick")  # done
        await here.run("quick", int(SystemClock().now_ms()), "manual")
        await here.run("fails")
        await here.run("loses")
        claim = await other.claim("cron:waits", here.tick, 60_000)
        assert isinstance(claim, Granted)
        await here.run("waits")  # held
        await here.run("waits", here.tick + 60_000)  # overlap
        await other.release(claim.lease)
        await here.cron.parts.locks.pause("cron:waits")
        await here.run("waits", here.tick + 60_000)
        await here.cron.parts.locks.resume("cron:waits")
        await here.run("waits", origin="sweep")
        seen = await scrape(here.api)
    counted = Counter((each.job, each.verdict) for each in here.entries)
    assert seen.values("ticks_total", "job", "verdict") == counted
    assert counted == {
        ("quick", "late"): 1, ("quick", "done"): 1, ("quick", "ran"): 1, ("fails", "failed"): 1,
        ("loses", "lost"): 1, ("waits", "held"): 1, ("waits", "overlap"): 1,
        ("waits", "paused"): 1, ("waits", "recovered"): 1,
    }  # fmt: skip
    assert seen.values("runs_total", "job", "state") == {
        ("quick", "succeeded"): 2, ("fails", "failed"): 1, ("loses", "lost"): 1,
        ("waits", "succeeded"): 1,
    }  # fmt: skip
    begun = [each for each in here.entries if each.begun]
    assert seen.values("tick_lateness_seconds_count", "job") == Counter(e.job for e in begun)
    lateness = sum(seen.values("tick_lateness_seconds_sum", "job").values())
    assert lateness == pytest.approx(sum(each.late_ms for each in begun) / 1000)
    assert seen.values("run_duration_seconds_count", "job") == {"quick": 2, "fails": 1, "waits": 1}
    assert seen.values("lock_attempts_total", "job", "result") == {
        ("quick", "acquired"): 2, ("quick", "done"): 1, ("fails", "acquired"): 1,
        ("loses", "acquired"): 1, ("waits", "held"): 2, ("waits", "paused"): 1,
        ("waits", "acquired"): 1,
    }  # fmt: skip
    assert seen.values("lock_lost_total", "job") == {"loses": 1}
    assert seen.values("lock_hold_seconds_count", "job") == {
        "quick": 2, "fails": 1, "loses": 1, "waits": 1,
    }  # fmt: skip
    assert seen.value("lock_hold_seconds_sum", job="loses") > 0.2  # until a renewal found out
    done = seen.values("job_last_success_timestamp_seconds", "job")
    assert done.keys() == {"quick", "waits"}
    assert all(abs(each - SystemClock().now_ms() / 1000) < 60 for each in done.values())
    due = seen.value("job_next_tick_timestamp_seconds", job="quick")
    assert due == here.tick / 1000 + 3600


async def test_without_redis_and_with_it_again(
    calm: pytest.MonkeyPatch, own_redis: RedisServer
) -> None:
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("SOLOCRON_REDIS_DEADLINE", "0.3")
    async with world(job("quick"), job("skips", on_redis_down="skip")) as here:
        assert (await scrape(here.api)).value("redis_up") == 1
        own_redis.stop()
        await here.run("quick")
        await here.run("quick")  # the ledger has it
        for number in range(3):
            await here.run("skips", here.tick + number)
        seen = await scrape(here.api)
        assert seen.value("redis_up") == 0 and seen.value("database_up") == 1
        assert seen.values("ticks_total", "job", "verdict") == {
            ("quick", "fallback"): 1, ("quick", "duplicate-prevented"): 1,
            ("skips", "redis-down"): 3,
        }  # fmt: skip
        assert seen.values("lock_attempts_total", "job", "result") == {
            ("quick", "unavailable"): 2, ("skips", "unavailable"): 3,
        }  # fmt: skip
        assert seen.values("alert", "alert", "job") == {("lock-unavailable", "skips"): 1}
        own_redis.start()
        await here.run("skips")
        seen = await scrape(here.api)
        assert seen.value("redis_up") == 1
        assert seen.values("alert", "alert", "job") == {}


async def test_the_database_away_is_seen_and_stops_no_scrape(calm: pytest.MonkeyPatch) -> None:
    async with world(job("quick")) as here:
        database = here.cron.parts.database

        async def away() -> Any:
            raise StorageUnavailable("no")

        calm.setattr(here.cron.parts.channels, "status", away)
        calm.setattr(database, "_up", False)
        seen = await scrape(here.api)
        assert seen.value("database_up") == 0
        assert seen.values("deliveries", "channel", "state") == {}


async def test_what_lives_is_read_when_it_is_asked_for(calm: pytest.MonkeyPatch) -> None:
    running, finish = asyncio.Event(), asyncio.Event()

    async def waits(run: Run) -> None:
        running.set()
        await finish.wait()

    async with world(job("waits", waits)) as here:
        api, cron = here.api, here.cron
        await put(api, "1", "2")
        scheduler = cron._scheduler
        assert scheduler is not None
        scheduler._try(cron.jobs["waits"], here.tick)
        await running.wait()
        await cron.parts.locks.pause("cron:waits")
        await scheduler.sweep()
        headers = {"Authorization": f"Bearer {READER}"}
        async with (
            aiohttp.ClientSession() as http,
            connected(api.port, READER) as one, connected(api.port, READER) as two,
            http.get(f"http://127.0.0.1:{api.port}/events?stores=1", headers=headers) as stream,
        ):  # fmt: skip
            for each in (one, two):
                await subscribe(each, {"1": None, "2": None})
            await stream.content.readuntil(b"subscribed")
            await api.call("POST", "/api/v1/stores/1/open", auth=token())
            for each in (one, two):
                await each.receive_json()
            seen = await scrape(api)
            assert seen.values("connections", "kind") == {"websocket": 2, "event-stream": 1}
            assert seen.value("hub_stores") == 2
            assert seen.value("hub_deliveries_total") == 3
            assert seen.value("jobs_running") == 1
            assert seen.values("job_paused", "job") == {"waits": 1}
        await cron.parts.locks.resume("cron:waits")
        await scheduler.sweep()
        finish.set()
        await true(lambda: scheduler.running == 0)
        seen = await scrape(api)
        assert seen.values("connections", "kind") == {}
        assert seen.value("jobs_running") == seen.value("job_paused", job="waits") == 0
        assert seen.value("relay_queued") == seen.value("slow_clients_total") == 0
        assert abs(seen.value("clock_skew_seconds")) < 1 > seen.value("loop_lag_seconds")
        assert [*seen.values("build_info", "version")] == ["0.1.0"]


async def test_emails_are_counted_by_state_and_not_read_at_each_scrape(
    calm: pytest.MonkeyPatch,
) -> None:
    async with world() as here:
        asked = 0

        async def status() -> list[dict[str, Any]]:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0.05)
            return [{"channel": "mail", "pending": 1, "sent": 20, "dead": 3, "skipped": 0}]

        calm.setattr(here.cron.parts.channels, "status", status)
        answers = await asyncio.gather(*(scrape(here.api) for _ in range(5)))
        assert asked == 1
        for each in answers:
            assert each.values("deliveries", "channel", "state") == {
                ("mail", "pending"): 1, ("mail", "sent"): 20, ("mail", "dead"): 3,
            }  # fmt: skip


async def test_labels_are_of_hosted_jobs_alone(calm: pytest.MonkeyPatch) -> None:
    """However many locks and jobs there are besides, they make one series."""
    async with world(job("quick")) as here:
        parts = here.cron.parts
        before = len((await scrape(here.api)).samples)
        for number in range(50):
            async with parts.locks.hold(f"mine:{number}", 5000):
                pass
            await parts.runner.run_tick(job(f"foreign-{number}"), here.tick)
        seen = await scrape(here.api)
        jobs = {dict(labels).get("job", "quick") for _, labels in seen.samples}
        assert jobs == {"quick", "store-auto-close", "store-open-reminder", "(others)"}
        assert seen.value("lock_attempts_total", job="(others)", result="acquired") == 100
        assert seen.value("lock_hold_seconds_count", job="(others)") == 100
        assert seen.value("runs_total", job="(others)", state="succeeded") == 50
        await parts.runner.run_tick(job("foreign-x"), here.tick)
        again = await scrape(here.api)
        assert len(again.samples) == len(seen.samples) < 2 * before


async def test_too_many_jobs_share_one_series(calm: pytest.MonkeyPatch) -> None:
    async with world(*(job(f"j{number}") for number in range(600))) as here:
        await here.run("j599")
        seen = await scrape(here.api)
    assert len({dict(labels).get("job") for _, labels in seen.samples}) == 500 + 2  # none, others
    assert seen.value("runs_total", job="(others)", state="succeeded") == 1


async def test_metrics_are_for_tokens_with_the_scope(calm: pytest.MonkeyPatch) -> None:
    async with world() as here:
        for auth, status in (
            (None, 401), (READER, 403), (token(scope="jobs:run"), 403), (SCRAPER, 200),
            (token(), 200),
        ):  # fmt: skip
            assert (await here.api.call("GET", "/metrics", auth=auth))[0] == status


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8",
         "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=nonsense", ""),
        ("text/plain; version=1.x; escaping=\tnone", ""),
        ("application/openmetrics-text;version=99999999999999999999.0.0;q=x,,;", ""),
    ],
)  # fmt: skip
async def test_the_format_is_negotiated(calm: pytest.MonkeyPatch, accept: str, kind: str) -> None:
    headers = {"Authorization": f"Bearer {SCRAPER}", "Accept": accept}
    async with world(job("quick")) as here, aiohttp.ClientSession() as http:
        await here.run("quick")
        url = f"http://127.0.0.1:{here.api.port}/metrics"
        async with http.get(url, headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith(kind)
            assert answer.headers["Content-Encoding"] in ("gzip", "deflate")
            text = await answer.text()
    if "openmetrics" in answer.headers["Content-Type"]:
        families = [*openmetrics.text_string_to_metric_families(text)]
        assert "solocron_ticks" in {each.name for each in families}
    else:
        assert Scrape(text).value("runs_total", job="quick", state="succeeded") == 1


async def test_promtool_finds_no_fault(calm: pytest.MonkeyPatch) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    async with world(job("quick"), job("fails", fails, attempts=1)) as here:
        await here.run("quick")
        await here.run("fails")
        _, text = await here.api.call("GET", "/metrics", auth=SCRAPER)
    check = [promtool, "check", "metrics"]
    found = await asyncio.to_thread(
        subprocess.run, check, input=text, capture_output=True, text=True, timeout=30
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
