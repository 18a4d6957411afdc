"""The jobs by name, and what the decorator makes of its options."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from solocron.cron.job import Job
from solocron.cron.registry import Registry
from solocron.cron.run import Run
from solocron.errors import ConfigError


async def nightly_report(run: Run) -> None:
    """Does nothing."""


@pytest.fixture
def registry() -> Registry:
    return Registry(
        zone="Europe/Berlin",
        policies={"environment": "staging", "catch_up_ms": 60},
        kept_ms=3_600_000,
    )


def made(registry: Registry, **options: Any) -> Job:
    assert registry.job("0 3 * * *", **options)(nightly_report) is nightly_report
    (job,) = registry.values()
    return job


def test_a_job_is_named_after_its_function_and_has_the_deployments_policies(
    registry: Registry,
) -> None:
    job = made(registry, ttl=timedelta(minutes=10), expected=timedelta(seconds=1.5))
    assert (job.name, job.calendar.zone, job.body) == (
        "nightly-report", "Europe/Berlin", nightly_report
    )  # fmt: skip
    assert (job.ttl_ms, job.expected_ms, job.catch_up_ms) == (600_000, 1500, 60)
    assert job.lock_key == "cron:nightly-report:staging"
    assert dict(registry) == {"nightly-report": job}


def test_a_name_is_given_once(registry: Registry) -> None:
    made(registry)
    with pytest.raises(ConfigError, match="named 'nightly-report' already: give this one another"):
        registry.job("* * * * *")(nightly_report)


def test_jobs_are_added_before_the_service_starts_or_after_it_stopped(registry: Registry) -> None:
    registry.freeze()
    with pytest.raises(ConfigError, match="'nightly-report': add jobs before the service starts"):
        registry.job("* * * * *")(nightly_report)
    registry.thaw()
    made(registry)


def test_an_option_that_does_not_exist_is_named_with_those_that_do(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"'nightly-report': there is no option 'tll': use of .*"):
        made(registry, tll=timedelta(minutes=1))


def test_each_option_is_the_jobs(registry: Registry) -> None:
    job = made(
        registry, name="own", zone="Africa/Cairo", ttl=timedelta(minutes=2), ping="http://h/p",
        lease=timedelta(seconds=9), catch_up="all", catch_up_window=timedelta(minutes=30),
        overlap="queue", attempts=7, backoff=timedelta(seconds=2), on_redis_down="skip",
        expected=timedelta(minutes=1), jitter=timedelta(minutes=10),
    )  # fmt: skip
    assert (job.name, job.calendar.zone, job.ping) == ("own", "Africa/Cairo", "http://h/p")
    assert (job.ttl_ms, job.lease_ms, job.expected_ms) == (120_000, 9_000, 60_000)
    assert (job.catch_up, job.catch_up_ms, job.overlap) == ("all", 1_800_000, "queue")
    assert (job.attempts, job.backoff_ms, job.on_redis_down) == (7, 2000, "skip")
    assert job.jitter_ms == 600_000


def test_none_is_the_deployments_setting(registry: Registry) -> None:
    names = ("zone", "lease", "catch_up", "catch_up_window", "on_redis_down", "expected", "jitter")
    job = made(registry, **dict.fromkeys(names))
    assert (job.calendar.zone, job.catch_up_ms, job.catch_up) == ("Europe/Berlin", 60, "latest")
    assert (job.lease_ms, job.on_redis_down, job.expected_ms, job.delay_ms) == (0, "run", 0, 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"zone": "Mars/Base"}, "time zone|zone 'Mars/Base'"),
        ({"ttl": 5}, r"ttl of job 'nightly-report' is '5': give a timedelta, such as"),
        ({"ttl": timedelta(0)}, r"ttl of job 'nightly-report' is 0: give 1 to"),
        ({"lease": timedelta(milliseconds=1)}, r"lease of job .* is 0.001 s: give 0.5 to 300 s"),
        (
            {"lease": timedelta(minutes=3), "ttl": timedelta(minutes=2)},
            r"lease of job .* is 180 s: give 0.5 to 120 s \(its ttl\)",
        ),
        ({"catch_up": "newest"}, r"catch_up of job .* is 'newest': give one of 'latest', 'all'"),
        ({"catch_up_window": timedelta(hours=2)}, r"catch_up_window of job .* is 7200 s: .*3600 s"),
        ({"catch_up_window": timedelta(-1)}, r"catch_up_window of job .* is -86400 s: give 0 to"),
        ({"overlap": "both"}, r"overlap of job .* is 'both': give one of 'skip', 'queue'"),
        ({"overlap": "queue", "catch_up": "skip"}, r"give 'latest' or 'all', or let overlap"),
        ({"attempts": 0}, r"attempts of job .* is 0: give 1 to 100"),
        ({"attempts": 1.5}, r"attempts of job .* is 1.5: give 1 to 100"),
        ({"backoff": timedelta(minutes=6)}, r"backoff of job .* is 360 s: give 0 to 300 s"),
        (
            {"on_redis_down": "wait"},
            r"on_redis_down of job .* is 'wait': give one of 'run', 'skip'",
        ),
        ({"expected": timedelta(days=9)}, r"expected of job .* is 777600 s: give 0 to 604800 s"),
        ({"jitter": timedelta(hours=2)}, r"jitter of job .* is 7200 s: give 0 to 3600 s"),
        ({"jitter": timedelta.max}, r"jitter of job .* give a timedelta, such as"),
        ({"ping": "ftp://h"}, "ping of job 'nightly-report': give an http"),
    ],
)
def test_what_is_wrong_is_named_with_the_job_its_value_and_the_remedy(
    registry: Registry, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as wrong:
        made(registry, **options)
    assert "nightly-report" in str(wrong.value)
    assert not registry


def test_jobs_of_one_schedule_are_spread_over_their_jitter_alike_on_all_servers(
    registry: Registry,
) -> None:
    jitter = timedelta(minutes=5)
    for number in range(1000):
        registry.job("0 0 * * *", name=f"job-{number}", jitter=jitter)(nightly_report)
    delays = [job.delay_ms for job in registry.values()]
    assert all(0 <= each < 300_000 for each in delays)
    by_second = Counter(each // 1000 for each in delays)
    assert max(by_second.values()) < 20  # 1,000 in one second without it
    assert registry["job-7"].delay_ms == 180_904


def no_run() -> None: ...


async def no_run_either() -> None: ...


async def two(run: Run, day: str) -> None: ...


@pytest.mark.parametrize("body", [no_run, no_run_either, two])
def test_a_function_that_cannot_be_called_with_the_run_is_refused(
    registry: Registry, body: Any
) -> None:
    with pytest.raises(ConfigError, match=r"called with the run.*: write def \w+\(run: Run\)"):
        registry.job("* * * * *")(body)
    assert not registry


@pytest.mark.parametrize("body", [lambda run: None, lambda *args: None, lambda run, day="": None])
def test_one_that_can_be_is_taken(registry: Registry, body: Any) -> None:
    registry.job("* * * * *", name="one")(body)
    assert "one" in registry


@pytest.mark.parametrize("schedule", [timedelta(seconds=5), "* * *", None])
def test_what_is_no_schedule_is_told_how_one_is_written(registry: Registry, schedule: Any) -> None:
    with pytest.raises(ConfigError, match=r"five fields, .*or six with seconds first") as wrong:
        registry.job(schedule)(nightly_report)
    assert "'nightly-report'" in str(wrong.value)


def test_which_jobs_older_servers_have_is_said_of_each(registry: Registry) -> None:
    theirs = made(registry, reserve=True)
    registry.job("* * * * *", name="new")(nightly_report)
    assert not theirs.runs_without_redis(2000) and theirs.runs_without_redis(0)
    assert registry["new"].runs_without_redis(2000)
