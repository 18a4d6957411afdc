"""The jobs by name, and what the decorator makes of its options."""

from __future__ import annotations

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
    return Registry(zone="Europe/Berlin", policies={"environment": "staging", "catch_up_ms": 60})


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
