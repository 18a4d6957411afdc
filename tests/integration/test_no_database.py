"""A service with DATABASE_URL=none: what works from Redis alone, and how the rest is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from test_web import token

from conftest import RedisServer
from ledgers import NONE
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, InvalidInput, NoDatabase
from solocron.service import Solocron
from solocron.settings import load
from solocron.stores import StoreTable

OPERATOR = token(scope="jobs:run metrics:read admin stores:write notifications:read")


@pytest.fixture
def alone(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    environment.setenv("DATABASE_URL", NONE)
    return environment


async def fine(run: Run) -> Mapping[str, int]:
    return {"rows": 3}


async def writes(run: Run) -> None:
    async with run.transaction():
        pass


def job(name: str, body: Any, **options: Any) -> Job:
    return Job(name=name, calendar=Calendar("0 0 1 1 *"), body=body, backoff_ms=1, **options)


@pytest.fixture
async def cron(alone: pytest.MonkeyPatch) -> AsyncIterator[Solocron]:
    cron = Solocron(load())
    cron.add(job("report", fine))
    cron.add(job("writer", writes, attempts=1))
    async with cron:
        yield cron


class Http:
    """The service over HTTP, for an operator."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def __call__(self, path: str, method: str = "GET") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        async with self._session.request(method, self._url + path, headers=headers) as answer:
            kind = answer.content_type
            return answer.status, await (answer.json() if "json" in kind else answer.text())


@pytest.fixture
async def http(alone: pytest.MonkeyPatch) -> AsyncIterator[Http]:
    cron = Solocron(load())
    cron.add(job("report", fine))
    async with cron.serving() as server, aiohttp.ClientSession() as session:
        yield Http(session, f"http://127.0.0.1:{server.port}")


async def test_a_run_by_hand_its_history_and_its_explanation(cron: Solocron) -> None:
    outcome = await cron.run_job("report", by="ann")
    assert (outcome.state, outcome.counts) == ("succeeded", {"rows": 3})
    (row,) = await cron.parts.ledger.history("report")
    assert (row["state"], row["origin"], row["asked_by"]) == ("succeeded", "manual", "ann")
    told = await cron.inquiry.explain("report", str(row["tick"]))
    assert (told["state"], told["database"], told["redis"]) == ("succeeded", "none", "up")
    state = await cron.status()
    assert (state["database"], state["problems"], state["deliveries"]) == ("none", [], [])
    assert {each["job"]: each["state"] for each in state["jobs"]}["report"] == "succeeded"


async def test_the_past_is_run_once(alone: pytest.MonkeyPatch) -> None:
    cron, now = Solocron(load()), datetime.now(UTC)
    cron.add(Job(name="hourly", calendar=Calendar("0 * * * *"), body=fine))
    async with cron:
        found = await cron.backfill("hourly", now - timedelta(hours=3), now)
        assert found.ticks == found.succeeded >= 3
        assert (await cron.backfill("hourly", now - timedelta(hours=3), now)).wanted == []


async def test_a_past_that_is_not_kept_is_not_run_for_nobody_would_know_that_it_was(
    alone: pytest.MonkeyPatch,
) -> None:
    cron, now = Solocron(load()), datetime.now(UTC)
    cron.add(Job(name="minutely", calendar=Calendar("* * * * *"), body=fine))
    cron.add(job("yearly", fine))
    async with cron:
        with pytest.raises(InvalidInput, match=r"7 days: .* SOLOCRON_HISTORY"):
            await cron.backfill("yearly", now - timedelta(days=8), now)
        with pytest.raises(InvalidInput, match=r"newest 2000 .* begin at \d{4}-.*T"):
            await cron.backfill("minutely", now - timedelta(days=2), now, dry_run=True)
        assert (await cron.backfill("yearly", now - timedelta(days=6), now)).ticks <= 1


async def test_what_needs_a_database_names_the_setting(
    cron: Solocron, alone: pytest.MonkeyPatch
) -> None:
    outcome = await cron.run_job("writer")
    assert outcome.state == "failed" and "DATABASE_URL is none" in (outcome.reason or "")
    for part in ("database", "stores", "hub", "deliveries", "relay"):
        with pytest.raises(NoDatabase, match="DATABASE_URL is none"):
            getattr(cron.parts, part)
    with pytest.raises(NoDatabase, match="DATABASE_URL"):
        await cron.notify("42", "shop.opened", {})
    with pytest.raises(NoDatabase, match="DATABASE_URL"):
        _ = cron.websocket
    with pytest.raises(NoDatabase, match="stores"):
        Solocron(load(), stores=StoreTable())


async def test_its_limits_are_told_once_at_the_start(
    cron: Solocron, caplog: pytest.LogCaptureFixture
) -> None:
    await cron.stop()
    caplog.clear()
    await cron.start()
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("No database: ")]
    assert len(said) == 3
    assert "FLUSHALL" in said[0] and "each server runs" in said[1] and "not fenced" in said[2]


async def test_it_is_ready_though_redis_is_away(
    alone: pytest.MonkeyPatch, own_redis: RedisServer
) -> None:
    alone.setenv("REDIS_URL", own_redis.url)
    own_redis.stop()
    async with Solocron(load()) as cron:
        ready, parts = await cron.readiness()
        assert ready and (parts["database"], parts["redis"]) == ("none", "down")


async def test_operators_see_jobs_runs_workers_and_metrics(http: Http) -> None:
    status, begun = await http("/api/v1/jobs/report/run", "POST")
    assert status == 202
    async with asyncio.timeout(10):
        while True:
            _, page = await http("/api/v1/jobs/report/runs")
            if [run["state"] for run in page["runs"]] == ["succeeded"]:
                break
            await asyncio.sleep(0.01)
    assert page["runs"][0]["tick"] == begun["tick"]
    _, jobs = await http("/api/v1/jobs")
    assert jobs["missing"] == {} and [each["job"] for each in jobs["jobs"]] == ["report"]
    _, summary = await http("/api/v1/summary")
    assert summary["missing"] == {} and summary["stores"] is summary["deliveries"] is None
    assert (await http("/api/v1/jobs/report/pause", "POST"))[0] == 200
    _, paused = await http("/api/v1/jobs/report")
    assert paused["paused"] and (await http("/api/v1/jobs/report/resume", "POST"))[0] == 200
    _, page = await http("/dashboard")
    assert "database none" in page and "Email and SMS" not in page and "not answer" not in page
    _, metrics = await http("/metrics")
    assert "solocron_redis_up 1" in metrics and "solocron_database_up" not in metrics
    assert (await http("/readyz"))[1]["ready"]


@pytest.mark.parametrize(
    "path", ["/ws", "/events", "/api/v1/stores", "/api/v1/stores/42", "/api/asyncapi.json"]
)
async def test_routes_of_stores_say_that_there_is_no_database(http: Http, path: str) -> None:
    status, problem = await http(path)
    assert (status, problem["status"]) == (404, 404)
    assert "DATABASE_URL" in problem["detail"] and path in problem["detail"]


@pytest.mark.parametrize("near", ["None", "NONE", " none ", "null", "off", "redis"])
def test_what_is_nearly_none_is_named(environment: pytest.MonkeyPatch, near: str) -> None:
    environment.setenv("DATABASE_URL", near)
    with pytest.raises(ConfigError, match="write none to have no database"):
        load()
