"""Traces: a span of each run and each try at a tick, links between them, and ids in log lines."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from conftest import RedisServer
from run_world import job, latest
from servers import Commit, Server, with_stores
from solocron.clock import SystemClock
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.locks.manager import LockManager
from solocron.logs import JsonFormatter
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger
from solocron.tracing import tracer
from workers import Worker, prepare

MINUTE = 60_000


class Traced:
    """A server whose spans a test can read."""

    def __init__(self, locks: LockManager, database: Database, lease_ms: int = 5000) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = tracer(self._provider)
        self.runner = Runner(
            locks=locks, ledger=RunLedger(database), clock=SystemClock(), owner="w",
            lease_ms=lease_ms, tracer=self.tracer,
        )  # fmt: skip

    def spans(self, name: str) -> list[ReadableSpan]:
        """Those that have ended, in that order."""
        return [each for each in self._exporter.get_finished_spans() if each.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


def said(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes, without the prefix."""
    return {key.removeprefix("solocron."): value for key, value in (span.attributes or {}).items()}


def linked(span: ReadableSpan) -> set[int]:
    """The ids of the spans it links to."""
    return {each.context.span_id for each in span.links}


def errors(span: ReadableSpan) -> list[str]:
    """The messages of its exceptions."""
    return [str((each.attributes or {})["exception.message"]) for each in span.events]


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[Database]:
    async with with_stores(sqlite_url, "a", "b") as database:
        yield database


@pytest.fixture
async def locks(redis_server: RedisServer) -> AsyncIterator[LockManager]:
    async with LockManager(redis_server.url, clock=SystemClock()) as locks:
        yield locks


@pytest.fixture
def traced(locks: LockManager, database: Database) -> Traced:
    return Traced(locks, database)


async def quick(run: Run) -> None:
    return None


async def stuck(run: Run) -> None:
    await asyncio.Event().wait()


async def test_a_run_is_a_trace_of_its_own_that_links_to_the_tick_it_was_begun_for(
    traced: Traced, locks: LockManager, database: Database
) -> None:
    tick, other = latest() - MINUTE, Traced(locks, database)
    await traced.runner.run_tick(job(quick), tick)
    run, begun_for = traced.span("cron one"), traced.span("tick one")
    assert said(run) == {
        "job": "one", "tick": tick, "attempt": 1, "fallback": False, "verdict": "late",
    }  # fmt: skip
    assert said(begun_for) == {
        "job": "one", "tick": tick, "origin": "schedule", "attempt": 1, "verdict": "late",
    }  # fmt: skip
    assert linked(run) == {begun_for.context.span_id}
    assert run.parent is None and run.context.trace_id != begun_for.context.trace_id
    assert {run.status.status_code, begun_for.status.status_code} == {StatusCode.UNSET}
    await other.runner.run_tick(job(quick), tick)
    assert said(other.span("tick one"))["verdict"] == "done" and not other.spans("cron one")


async def test_each_tick_that_is_caught_up_is_a_run_of_its_own(traced: Traced) -> None:
    tick, queue = latest(), job(quick, overlap="queue")
    await traced.runner.run_tick(queue, tick - 2 * MINUTE)
    await traced.runner.run_tick(queue, tick, origin="sweep")
    runs = traced.spans("cron one")
    assert [said(each)["tick"] for each in runs] == [tick - 2 * MINUTE, tick - MINUTE, tick]
    assert [said(each)["verdict"] for each in runs] == ["late", "recovered", "recovered"]
    assert len({each.context.trace_id for each in runs}) == 3
    begun_for = traced.spans("tick one")[-1].context.span_id
    assert [linked(each) for each in runs[1:]] == [{begun_for}, {begun_for}]


async def test_a_run_by_hand_is_part_of_what_asked_for_it_and_a_schedules_is_not(
    traced: Traced,
) -> None:
    with traced.tracer.span("request", {}):
        await traced.runner.run_tick(job(quick), latest(), origin="manual")
        await traced.runner.run_tick(job(quick, name="two"), latest())
    request, by_hand = traced.span("request"), traced.span("tick one")
    assert by_hand.parent is not None and by_hand.parent.span_id == request.context.span_id
    assert traced.span("tick two").parent is None


async def test_a_failed_run_has_each_exception_and_no_password(traced: Traced) -> None:
    async def fails(run: Run) -> None:
        raise ValueError(f"attempt {run.attempt}: no answer from http://joe:s3cret@shop/")

    await traced.runner.run_tick(job(fails, attempts=2), latest())
    run = traced.span("cron one")
    assert (said(run)["verdict"], said(run)["attempt"]) == ("failed", 2)
    assert errors(run) == [f"attempt {n}: no answer from http://joe:***@shop/" for n in (1, 2)]
    assert run.status.status_code is StatusCode.ERROR
    assert run.status.description == "ValueError: " + errors(run)[-1]
    assert traced.span("tick one").status.status_code is StatusCode.ERROR
    assert "s3cret" not in run.to_json()
    assert "in fails" in run.to_json()  # where it happened


async def test_a_run_that_succeeds_at_last_is_no_error(traced: Traced) -> None:
    async def recovers(run: Run) -> None:
        if run.attempt == 1:
            raise ValueError("no stock")

    await traced.runner.run_tick(job(recovers, attempts=2), latest())
    run = traced.span("cron one")
    assert (errors(run), said(run)["attempt"]) == (["no stock"], 2)
    assert run.status.status_code is StatusCode.UNSET


async def test_a_killed_servers_run_is_traced_by_the_one_that_takes_it_over(
    redis_server: RedisServer, sqlite_url: str
) -> None:
    database = await prepare(sqlite_url)
    options = {"name": "w", "body_ms": 60_000}
    worker = await Worker.start(redis=redis_server.url, database=sqlite_url, job=options, lease=1)
    started = await worker.saw(lambda event: event["event"] == "start")
    await worker.kill()
    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=1000) as locks:
        traced = Traced(locks, database, lease_ms=1000)
        async with asyncio.timeout(20):
            while not traced.spans("cron tick-test"):
                await traced.runner.run_tick(job(quick, "tick-test"), started["tick"])
    await database.close()
    run = traced.span("cron tick-test")
    assert {key: said(run)[key] for key in ("tick", "attempt", "verdict")} == {
        "tick": started["tick"], "attempt": 2, "verdict": "recovered",
    }  # fmt: skip
    assert said(traced.spans("tick tick-test")[0])["verdict"] == "held"  # the lease was not over


async def test_who_loses_a_run_says_so_and_who_goes_on_with_it_too(
    redis_server: RedisServer, database: Database
) -> None:
    async def loses(run: Run) -> None:
        redis_server.cli("DEL", "cron:one")
        await asyncio.Event().wait()

    async with LockManager(redis_server.url, clock=SystemClock(), lease_ms=300) as locks:
        traced, other = Traced(locks, database, lease_ms=300), Traced(locks, database)
        await traced.runner.run_tick(job(loses), latest())
        await other.runner.run_tick(job(quick), said(traced.span("cron one"))["tick"])
    lost = traced.span("cron one")
    assert (said(lost)["verdict"], lost.status.status_code) == ("lost", StatusCode.ERROR)
    assert "deleted" in str(lost.status.description)
    assert (said(other.span("cron one"))["verdict"], said(other.span("cron one"))["attempt"]) == (
        "recovered", 2,
    )  # fmt: skip


async def test_a_run_that_is_given_back_is_lost(traced: Traced) -> None:
    task = asyncio.create_task(traced.runner.run_tick(job(stuck), latest()))
    async with asyncio.timeout(10):
        while not traced.runner.under_way:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    run = traced.span("cron one")
    assert (said(run)["verdict"], run.status.status_code) == ("lost", StatusCode.ERROR)
    assert run.status.description == "given back: the server stopped"


async def test_without_redis_a_run_is_a_fallback(
    own_redis: RedisServer, database: Database
) -> None:
    async with LockManager(own_redis.url, clock=SystemClock(), deadline_s=0.3) as locks:
        traced = Traced(locks, database)
        own_redis.stop()
        await traced.runner.run_tick(job(quick), latest())
    run = said(traced.span("cron one"))
    assert (run["fallback"], run["verdict"]) == (True, "fallback")


async def test_log_lines_of_a_run_have_its_trace_id(
    traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler, log = Lines(), logging.getLogger("solocron")
    caplog.set_level("INFO", "solocron")
    log.addHandler(handler)
    try:
        log.info("before")
        await traced.runner.run_tick(job(quick), latest())
        await traced.runner.run_tick(job(quick), latest() - MINUTE)
        log.info("after")
    finally:
        log.removeHandler(handler)
    run, ticks = traced.span("cron one"), traced.spans("tick one")
    assert [
        (each["message"].split()[0], each.get("trace_id"))
        for each in lines
        if each["logger"] != "solocron.locks"
    ] == [
        ("before", None),
        ("Starting", f"{run.context.trace_id:032x}"),
        ("One", f"{run.context.trace_id:032x}"),
        ("The", f"{ticks[1].context.trace_id:032x}"),
        ("after", None),
    ]
    of_locks = [each["trace_id"] for each in lines if each["logger"] == "solocron.locks"]
    assert of_locks[0] == f"{ticks[0].context.trace_id:032x}"


async def test_a_batch_links_to_the_runs_its_notifications_came_from(
    traced: Traced, redis_server: RedisServer, database: Database
) -> None:
    server, commit = Server(database, redis_server.url, tracer=traced.tracer), Commit(database)

    async def body(run: Run) -> None:
        for store in ("a", "b"):
            server.relay.publish(await commit(store, 2))

    await traced.runner.run_tick(job(body), latest())
    await traced.runner.run_tick(job(body, "two"), latest())
    server.relay.publish(await commit("a"))  # by nobody that is traced
    await server.relay.flush()
    await server.fanout.close()
    batch = traced.span("publish")
    assert said(batch) == {"messaging.batch.message_count": 9}
    assert [each.context.span_id for each in batch.links] == [
        traced.span(name).context.span_id for name in ("cron one", "cron two")
    ]
    assert batch.status.status_code is StatusCode.UNSET and batch.parent is None


async def test_a_batch_that_redis_did_not_take_is_an_error(
    traced: Traced, own_redis: RedisServer, database: Database
) -> None:
    server = Server(database, own_redis.url, tracer=traced.tracer)
    own_redis.stop()
    server.relay.publish(await Commit(database)("a"))
    await server.relay.flush()
    await server.fanout.close()
    assert traced.span("publish").status.status_code is StatusCode.ERROR


SERVICE = """
import asyncio, sys
if "without" in sys.argv:
    sys.modules["opentelemetry"] = None  # as if it were not installed
from solocron import Solocron
from solocron.logs import configure
from solocron.stores.model import Store

if "with" in sys.argv:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

async def main():
    configure("json", "info")
    cron = Solocron.from_env()
    await cron.parts.database.migrate()
    await cron.parts.stores.put(Store(id="a", name="a", timezone="UTC", hours="24/7"), 0)
    await cron.parts.database.close()
    async with cron:
        assert (await cron.run_job("store-open-reminder")).counts == {"reminded": 1}
    if "without" in sys.argv:
        print([each for each in sys.modules if each.startswith("opentelemetry.")])
    else:
        spans = exporter.get_finished_spans()
        names = {each.context.span_id: each.name for each in spans}
        print(sorted((each.name, *(names[link.context.span_id] for link in each.links))
                     for each in spans))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "printed"),
    [
        ("with", "[('cron store-open-reminder', 'tick store-open-reminder'), "
                 "('publish', 'cron store-open-reminder'), ('tick store-open-reminder',)]"),
        ("without", "[]"),
    ],
)  # fmt: skip
def test_a_service_traces_by_the_process_provider_and_without_the_package_imports_nothing(
    how: str, printed: str, redis_server: RedisServer, sqlite_url: str
) -> None:
    environment = {
        **os.environ, "REDIS_URL": redis_server.url, "DATABASE_URL": sqlite_url,
        "SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE": "0 0 1 1 *",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[2] / "app"), os.environ.get("PYTHONPATH", "")]
        ),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, how], env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed
    assert ('"trace_id"' in done.stderr) is (how == "with")
