"""What `doctor` finds wrong, from what was measured: case by case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from solocron.cli.findings import (
    DatabaseFacts,
    Finding,
    RedisFacts,
    of_database,
    of_deliveries,
    of_redis,
    p95,
)
from solocron.cli.fitting import of_job, of_runs, of_settings, of_workers, ttl_for
from solocron.cron.attempts import CANCELLED
from solocron.cron.board import Presence
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.settings import Settings

NOW = 1_795_600_000_000  # 2026-11-25
SILENT_MS = 17_000
GOOD = {"redis_version": "7.2.4", "role": "master", "connected_slaves": "1"}
GOOD_CONFIG = {"min-replicas-to-write": "1", "save": "3600 1"}


async def _body(run: Run) -> None: ...


def brief(found: Iterable[Finding]) -> list[tuple[str, str]]:
    found = list(found)
    assert all(each.remedy and each.text for each in found)
    return [(each.severity, each.text) for each in found]


def one(found: Iterable[Finding], severity: str, text: str) -> None:
    """Exactly this is found."""
    ((seen, said),) = brief(found)
    assert seen == severity and text in said


def settings(**changes: Any) -> Settings:
    return Settings(**changes)


def redis(info: dict[str, str] | None = None, config: Any = None, **more: Any) -> list[Finding]:
    facts = RedisFacts("", {**GOOD, **(info or {})}, {**GOOD_CONFIG, **(config or {})}, **more)
    return list(of_redis(facts, settings()))


@pytest.mark.parametrize(
    ("info", "config", "text"),
    [
        ({"aof_enabled": "0"}, {"save": ""}, "what is known of runs end with it"),
        ({"connected_slaves": "0"}, {}, "each server decides for itself"),
        ({}, {"min-replicas-to-write": "0"}, "which nothing corrects"),
    ],
)
def test_without_a_database_nothing_is_left_to_it(
    info: dict[str, str], config: dict[str, str], text: str
) -> None:
    facts = RedisFacts("", {**GOOD, **info}, {**GOOD_CONFIG, **config})
    one(of_redis(facts, settings(DATABASE_URL="none")), "note", text)


@pytest.mark.parametrize(
    ("found", "severity", "text"),
    [
        (redis({"redis_version": "6.0.16"}), "error", "Redis 6.0.16"),
        (redis({"maxmemory_policy": "allkeys-lru", "maxmemory": "9"}), "warning", "9 bytes"),
        (redis({"maxmemory_policy": "volatile-ttl", "maxmemory": "0"}), "note", "once it has"),
        (redis({"rdb_last_bgsave_status": "err"}), "error", "last save to disk failed"),
        (redis({"aof_last_write_status": "err"}), "error", "last write to disk failed"),
        (redis({"aof_enabled": "0"}, {"save": ""}), "note", "keeps nothing over a restart"),
        (redis({"role": "slave"}), "error", "replica"),
        (redis({"connected_slaves": "0"}), "note", "no replica"),
        (redis(None, {"min-replicas-to-write": "0"}), "note", "cut off from its replicas"),
        (redis(ahead_ms=1500), "warning", "1.5 s ahead of it"),
        (redis(ahead_ms=-1500), "warning", "1.5 s behind it"),
        (redis(ahead_ms=61_000), "error", "runs no tick before its time"),
        (redis(ahead_ms=-61_000), "warning", "61.0 s behind"),
        (redis(answers_ms=[300.0] * 20), "warning", "300 ms to answer"),
        (of_redis(RedisFacts("", denied="no INFO"), settings()), "note", "no INFO"),
    ],
)
def test_a_redis_that_is_not_as_it_should_be(
    found: Iterable[Finding], severity: str, text: str
) -> None:
    one(found, severity, text)


@pytest.mark.parametrize(
    "found",
    [
        redis(),
        redis({"redis_version": "6.2.14"}),
        redis({"aof_enabled": "1"}, {"save": ""}),
        redis({"aof_enabled": "0"}),
        redis(ahead_ms=900),
        redis(answers_ms=[1.0] * 19 + [900.0]),  # one of twenty may be slow
    ],
)
def test_a_redis_that_is_well(found: list[Finding]) -> None:
    assert found == []


def worker(name: str = "h1:1:a", **changes: Any) -> Presence:
    values: dict[str, Any] = {
        "worker": name, "host": name.split(":")[0], "pid": 1, "version": "1.0", "started_ms": 1,
        "seen_ms": NOW - 1000, "schedules": {}, "redis": "up", "database": "up",
    }  # fmt: skip
    return Presence(**{**values, **changes})


TWO = [worker(), worker("h2:1:b")]


@pytest.mark.parametrize(
    ("facts", "workers", "severity", "text"),
    [
        (DatabaseFacts("sqlite", file_system="nfs4"), [], "error", "nfs4"),
        (DatabaseFacts("sqlite"), TWO, "error", "h1, h2 each have"),
        (DatabaseFacts("postgresql", [101.0] * 20), TWO, "warning", "101 ms"),
        (DatabaseFacts("postgresql", ahead_ms=-2000), TWO, "warning", "2.0 s behind"),
    ],
)
def test_a_database_that_is_not_as_it_should_be(
    facts: DatabaseFacts, workers: list[Presence], severity: str, text: str
) -> None:
    one(of_database(facts, workers, settings()), severity, text)


def test_dead_letters_are_to_be_sent_again() -> None:
    assert brief(of_deliveries(0)) == []
    one(of_deliveries(1), "warning", "1 emails, SMS and the like were given up")
    one(of_deliveries(1000), "warning", "1000 or more emails")
    assert all("solocron deadletters --retry" in each.remedy for each in of_deliveries(7))


def test_a_database_that_is_well() -> None:
    facts = DatabaseFacts("postgresql", [1.0] * 20, 5.0, "")
    assert brief(of_database(facts, TWO, settings())) == []
    local = DatabaseFacts("sqlite", [1.0], 0.0, "ext4")
    assert brief(of_database(local, [worker(), worker("h1:2:b")], settings())) == []


def nightly(expression: str = "0 3 * * *", zone: str = "UTC", ttl_s: int = 150) -> Job:
    return Job(name="nightly", calendar=Calendar(expression, zone), body=_body, ttl_ms=ttl_s * 1000)


OTHER = {"nightly": "0 4 * * * UTC"}
GONE = worker("h3:1:c", seen_ms=NOW - 18_000)


@pytest.mark.parametrize(
    ("workers", "severity", "text"),
    [
        ([], "error", "none is up"),
        ([worker()], "note", "only h1:1:a is up"),
        ([*TWO, GONE], "warning", "none was started in its place"),
        ([*TWO, GONE], "warning", "silent since 2026-11-25T"),
        ([*TWO, GONE, worker("h4:1:d", started_ms=NOW - 5_000)], "note", "it was replaced"),
        ([worker(), worker("h2:1:b", version="0.9")], "warning", "releases 0.9, 1.0"),
        ([worker(), worker("h2:1:b", schedules=OTHER)], "error", "b run it by '0 4 * * * UTC'"),
        ([worker(), worker("h2:1:b", redis="down")], "warning", "cannot reach the Redis"),
        ([worker(), worker("h2:1:b", database="down")], "warning", "cannot reach the Database"),
        ([worker(), worker("h2:1:b", skew_ms=-3000)], "warning", "3.0 s behind Redis's"),
        ([worker(), worker("h2:1:b", loop_lag_ms=800)], "warning", "800 ms late"),
    ],
)  # fmt: skip
def test_servers_that_are_not_as_they_should_be(
    workers: list[Presence], severity: str, text: str
) -> None:
    one(of_workers(workers, [nightly()], NOW, SILENT_MS), severity, text)


def test_a_redis_that_was_just_started_knows_no_server_yet() -> None:
    one(of_workers([], [], NOW, SILENT_MS, 3.2), "warning", "started 3 s ago and knows no server")
    one(of_workers([], [], NOW, SILENT_MS, 17.0), "error", "none is up")


def test_servers_that_are_well() -> None:
    assert brief(of_workers(TWO, [nightly()], NOW, SILENT_MS)) == []
    starting = worker(started_ms=NOW - 1500, redis="down", database="down")  # its first word
    assert brief(of_workers([*TWO, starting], [nightly()], NOW, SILENT_MS)) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lease": 4, "sweep": 5}, "SOLOCRON_SWEEP (5 s) is over SOLOCRON_LEASE (4 s)"),
        ({"redis_deadline": 20}, "SOLOCRON_LEASE (30 s) is under three times"),
        ({"catch_up": 34}, "SOLOCRON_CATCH_UP (34 s) is under lease + sweep (35 s)"),
    ],
)
def test_times_that_do_not_fit(changes: dict[str, float], text: str) -> None:
    one(of_settings(settings(**changes)), "warning", text)


def test_the_default_times_fit() -> None:
    assert brief(of_settings(settings())) == []
    assert brief(of_settings(settings(catch_up=35))) == []


@pytest.mark.parametrize(
    ("job", "took_ms", "severity", "text"),
    [
        (nightly(ttl_s=15), 10_000, "warning", "its TTL is 15 s"),
        (nightly(ttl_s=601), 10_000, "note", "95 % took up to 10.0 s"),
        (nightly(ttl_s=400), 700_000, "warning", "its TTL is 400 s"),
        (nightly(), 21_000, "warning", "SOLOCRON_GRACE is 20 s"),
        (nightly("* * * * * *"), 1_100, "warning", "due every 1 s"),
    ],
)
def test_what_does_not_fit_a_jobs_runs(job: Job, took_ms: int, severity: str, text: str) -> None:
    grace = 20 if "GRACE" in text else 3600
    one(of_job(job, [took_ms] * 20, settings(grace=grace), NOW), severity, text)
    assert brief(of_job(job, [took_ms] * 4, settings(grace=grace), NOW)) == []  # too few


def test_the_ttl_of_another_services_job_is_not_known() -> None:
    job = nightly(ttl_s=1)
    assert brief(of_job(job, [10_000] * 20, settings(), NOW, ttl_known=False)) == []
    one(of_job(job, [21_000] * 20, settings(), NOW, ttl_known=False), "warning", "SOLOCRON_GRACE")


def test_what_fits_a_jobs_runs() -> None:
    assert brief(of_job(nightly(), [10_000] * 20, settings(), NOW)) == []
    for ttl_s in (30, 600):  # shorter than the guideline's, and longer
        assert brief(of_job(nightly(ttl_s=ttl_s), [200] * 20, settings(), NOW)) == []
    assert brief(of_job(nightly(ttl_s=900), [200] * 19, settings(), NOW)) == []  # too few
    assert brief(of_job(nightly(), [10] * 19 + [900_000], settings(), NOW)) == []


def test_the_next_day_without_the_time_is_named() -> None:
    cairo = nightly("0 0 * * *", "Africa/Cairo")
    one(of_job(cairo, (), settings(), NOW), "note", "on 2027-04-30 its time does not exist")
    one(of_job(cairo, (), settings(), 1_776_900_000_000), "note", "on 2026-04-24 its")
    assert brief(of_job(nightly("0 6 * * *", "Africa/Cairo"), (), settings(), NOW)) == []


@pytest.mark.parametrize(
    ("duration_s", "ttl_s"), [(59, (120, 180)), (60, (300, 600)), (301, (602, 903))]
)
def test_the_ttl_follows_the_originals_guideline(
    duration_s: float, ttl_s: tuple[float, float]
) -> None:
    assert ttl_for(duration_s) == ttl_s


def test_p95() -> None:
    assert p95([7.0]) == 7 and p95(list(range(1, 101))) == 95 and p95([3, 1, 2]) == 3


@pytest.mark.parametrize(
    ("states", "found"),
    [
        (["failed", "succeeded"], True),
        (["running", "failed"], True),  # not over yet
        (["succeeded", "failed"], False),
        (["running"], False),
        ([], False),
    ],
)
def test_a_job_whose_last_run_failed(states: list[str], found: bool) -> None:
    no_stock = {"tick": 7, "origin": "manual", "error": "ValueError: no stock"}
    rows = [{**no_stock, "state": each} for each in states]
    rows.insert(0, {**no_stock, "state": "failed", "error": CANCELLED})  # by who asked for it
    told = brief(of_runs("one", rows))
    assert told == [("error", "its last run failed: ValueError: no stock")][: int(found)]
    assert all(each.remedy.endswith("explain one --tick 7") for each in of_runs("one", rows))
