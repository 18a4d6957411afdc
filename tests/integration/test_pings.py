"""Dead-man pings: of the worker that runs, in order, and never in a run's way."""

from __future__ import annotations

import asyncio
import logging

import pytest
from test_alerts import QUIET_S, calm, fails, fleet, job, quick
from test_metrics import true

from services import HttpServer
from solocron.alerts.pings import places_of
from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.errors import ConfigError
from solocron.service import Solocron
from solocron.settings import load

__all__ = ["calm"]  # a fixture

NOW = int(SystemClock().now_ms())


def url(http: HttpServer) -> str:
    return f"http://127.0.0.1:{http.port}/s3cret?create=1"


def paths(*ends: str) -> list[str]:
    return [f"/s3cret{end}?create=1" for end in ends]


async def test_the_worker_that_runs_tells_of_begin_and_end(
    calm: pytest.MonkeyPatch, http: HttpServer
) -> None:
    calm.delenv("SOLOCRON_ALERT_URLS")
    ping = url(http)
    async with fleet(http, job(ping=ping), job(fails, attempts=2, ping=ping)) as here:
        await here.run(0, NOW)
        await true(lambda: len(http.paths) == 2)
        await here.run(1, NOW)  # it was run
        await asyncio.sleep(QUIET_S)
        assert http.paths == paths("/start", "")
        await here.run(1, NOW + 1)
        await true(lambda: len(http.paths) == 4)
    assert http.paths == paths("/start", "", "/start", "/fail")


async def test_a_hung_or_failing_receiver_keeps_no_run_and_is_tried_again(
    calm: pytest.MonkeyPatch, http: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    calm.delenv("SOLOCRON_ALERT_URLS")
    http.answers.clear()
    answers = [500]
    http.status = lambda: answers.pop() if answers else 200
    async with fleet(http, job(ping=url(http))) as here:
        await here.run(0, NOW)
        await here.run(0, NOW + 1)
        assert len(http.paths) <= 1  # both runs have ended, and it has not answered once
        await true(lambda: "no answer within 5 s" in caplog.text)
        http.answers.set()
        await true(lambda: "work again" in caplog.text)
        await true(lambda: http.paths[-3:] == paths("", "/start", ""))
    assert set(http.paths) == set(paths("/start", ""))
    assert "s3cret" not in caplog.text and "create=1" not in caplog.text
    assert "127.0.0.1 failed" in caplog.text


async def test_a_stop_waits_for_no_hung_receiver(
    calm: pytest.MonkeyPatch, http: HttpServer
) -> None:
    calm.delenv("SOLOCRON_ALERT_URLS")
    http.answers.clear()
    async with fleet(http, job(ping=url(http))) as here:
        await here.run(0, NOW)
        await true(lambda: http.paths == paths("/start"))
        async with asyncio.timeout(4):  # a ping has 5 s
            await here.workers[0].stop()
    assert http.paths == paths("/start")


async def test_what_waits_at_a_stop_goes_out(calm: pytest.MonkeyPatch, http: HttpServer) -> None:
    calm.delenv("SOLOCRON_ALERT_URLS")
    http.answers.clear()
    async with fleet(http, job(ping=url(http))) as here:
        await here.run(0, NOW)
        await true(lambda: http.paths == paths("/start"))
        stopping = asyncio.create_task(here.workers[0].stop())
        await asyncio.sleep(0.1)
        http.answers.set()
        await stopping
    assert http.paths == paths("/start", "")


@pytest.mark.parametrize(
    "wrong",
    ["ftp://h/s3cret", "s3cret", "http:///s3cret", "http://h:x/s3cret", "https://h/" + "s" * 1000],
)
def test_only_short_http_urls_and_none_is_shown(
    wrong: str, environment: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="give an http:// or https:// URL") as caught:
        job(ping=wrong)
    assert wrong not in str(caught.value)
    environment.setenv("SOLOCRON_STORE_AUTO_CLOSE_PING", wrong)
    with pytest.raises(ConfigError, match=r"^SOLOCRON_STORE_AUTO_CLOSE_PING: give an") as caught:
        load()
    assert wrong not in str(caught.value)


def test_a_built_in_job_has_the_ping_of_its_setting_and_shows_it_nowhere(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("SOLOCRON_STORE_OPEN_REMINDER_PING", "https://h/s3cret")
    cron = Solocron(load())
    found: Job = cron.jobs["store-open-reminder"]
    assert found.ping == "https://h/s3cret" and cron.jobs["store-auto-close"].ping == ""
    assert "s3cret" not in repr(found) + repr(cron.settings)
    cron.job("0 3 * * *", name="own", ping="https://h/own")(quick)
    assert cron.jobs["own"].ping == "https://h/own"


@pytest.mark.parametrize(
    ("ping", "start", "success"),
    [
        ("https://h/uuid", "https://h/uuid/start", "https://h/uuid"),
        ("https://h/uuid/?a=b%20c#x", "https://h/uuid/start?a=b%20c", "https://h/uuid?a=b%20c"),
        ("http://u:p@h:81", "http://u:p@h:81/start", "http://u:p@h:81"),
    ],
)
def test_where_a_run_is_told_of(ping: str, start: str, success: str) -> None:
    assert places_of(ping)["start"] == start
    assert places_of(ping)["success"] == success
