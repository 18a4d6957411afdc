"""REST for operators of a real service: what is told, who may do what, and what is known without
Redis or the database."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from test_metrics import World, calm, job, world
from test_web import Api, token

from conftest import RedisServer
from solocron.cron.run import Run
from solocron.locks.manager import LockManager
from solocron.settings import load
from solocron.storage.engine import Database
from solocron.web.server import problem
from solocron.web.session import PROTOCOL
from workers import until

__all__ = ["calm"]

OPERATOR = token(scope="jobs:run", stores=[], sub="on call")
WATCHER = token(scope="metrics:read", stores=[])
HOLD_MS = 60_000


class Body:
    """A job's body that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun, self.end = asyncio.Event(), asyncio.Event()
        self.runs = 0

    async def __call__(self, run: Run) -> dict[str, int]:
        self.runs += 1
        self.begun.set()
        await self.end.wait()
        return {"done": 1}


async def fails(run: Run) -> None:
    raise ValueError("no stock")


@pytest.fixture
def body() -> Body:
    return Body()


@pytest.fixture
async def here(
    calm: pytest.MonkeyPatch,
    own_redis: RedisServer,
    database_url: str,
    database: Database,
    body: Body,
) -> AsyncIterator[World]:
    """A service on either database and its own Redis, with the job `slow`, which waits, and
    `broken`, which fails."""
    calm.setenv("REDIS_URL", own_redis.url)
    calm.setenv("DATABASE_URL", database_url)
    calm.setenv("SOLOCRON_REDIS_DEADLINE", "0.3")
    slow = job("slow", body, params={"day": "today", "limit": 3})
    async with world(slow, job("broken", fails, attempts=1)) as here:
        yield here
        body.end.set()


async def get(here: World, path: str, auth: str = WATCHER) -> Any:
    status, answer = await here.api.call("GET", f"/api/v1/{path}", auth=auth)
    assert status == 200, answer
    return answer


async def post(here: World, path: str, body: Any = None, auth: str = OPERATOR) -> tuple[int, Any]:
    return await here.api.call("POST", f"/api/v1/{path}", body, auth=auth)


def basic(auth: str) -> str:
    return "Basic " + base64.b64encode(f"me:{auth}".encode()).decode()


async def ended(here: World, name: str, count: int = 1) -> list[dict[str, Any]]:
    """The job's runs, once so many of them have ended."""
    found: list[dict[str, Any]] = []

    async def enough() -> bool:
        found[:] = (await get(here, f"jobs/{name}/runs"))["runs"]
        return sum(each["state"] != "running" for each in found) >= count

    await until(enough)
    return found


# -- reading ---------------------------------------------------------------------------------


async def test_jobs_and_their_runs_are_told(here: World, body: Body) -> None:
    body.end.set()
    await here.run("slow")
    await here.run("broken")
    jobs = await get(here, "jobs")
    assert jobs["missing"] == {}
    found = {each["job"]: each for each in jobs["jobs"]}
    assert {"slow", "broken", "store-auto-close", "store-open-reminder"} == found.keys()
    (run,) = found["slow"]["runs"]
    assert (run["tick"], run["state"], run["origin"]) == (here.tick, "succeeded", "schedule")
    assert (run["attempt"], run["error"], run["result"]) == (1, None, {"done": 1})
    assert run["late_ms"] == run["started_at"] - here.tick > 0
    assert found["slow"]["next_tick"] == here.tick + 3_600_000
    assert found["slow"]["settled_tick"] == here.tick
    assert (found["slow"]["owner"], found["slow"]["paused"]) == (None, False)
    (failed,) = found["broken"]["runs"]
    assert (failed["state"], failed["error"]) == ("failed", "ValueError: no stock")
    assert found["store-auto-close"]["runs"] == []
    one = await get(here, "jobs/slow")
    assert {**one, "next_tick": 0, "now": 0} == {
        **found["slow"], "next_tick": 0, "now": 0, "missing": {}
    }  # fmt: skip


async def test_runs_come_by_pages_newest_first(here: World, body: Body) -> None:
    body.end.set()
    ticks = [here.tick + number for number in range(5)]
    for tick in ticks:
        await here.cron.parts.runner.run_tick(here.cron.jobs["slow"], tick, origin="manual")
    seen, before = [], ""
    while True:
        page = await get(here, f"jobs/slow/runs?limit=2{before}")
        seen.append([each["tick"] for each in page["runs"]])
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert seen == [ticks[:2:-1], ticks[2:0:-1], ticks[:1]]
    assert {each["late_ms"] for each in page["runs"]} == {None}
    several = await get(here, "jobs/slow?runs=3")
    assert [each["tick"] for each in several["runs"]] == ticks[:1:-1]


async def test_workers_locks_and_alerts_are_told(here: World, body: Body) -> None:
    running = asyncio.create_task(here.run("slow"))
    await body.begun.wait()
    await here.cron.parts.board.publish()
    (worker,) = (await get(here, "workers"))["workers"]
    assert (worker["alive"], worker["here"], worker["redis"]) == (True, True, "up")
    assert worker["schedules"]["slow"].endswith("UTC")
    (lock,) = (await get(here, "locks"))["locks"]
    assert (lock["key"], lock["job"], lock["tick"]) == ("cron:slow", "slow", here.tick)
    assert lock["ours"] and 0 < lock["ttl_ms"] <= 300_000
    slow = await get(here, "jobs/slow")
    assert (slow["owner"], slow["runs"][0]["state"]) == (lock["owner"], "running")
    assert 0 < slow["lock_ttl_ms"] <= 300_000
    assert (await get(here, "alerts"))["alerts"] == []
    body.end.set()
    await running
    assert (await get(here, "locks"))["locks"] == []


async def test_a_summary_counts_stores_deliveries_and_runs(here: World, body: Body) -> None:
    body.end.set()
    for number, hours in enumerate(["24/7", "24/7", "off", "off"]):
        store = {"name": "x", "timezone": "UTC", "hours": hours}
        path = f"/api/v1/stores/{number}"
        assert (await here.api.call("PUT", path, store, auth=token()))[0] == 201
    await here.api.call("POST", "/api/v1/stores/2/open", auth=token())
    await here.run("slow")
    await here.run("broken")
    found = await get(here, "summary")
    assert found["stores"] == {"stores": 4, "open": 1, "to_close": 1, "to_remind": 2}
    hours = {each.pop("job"): each for each in found["hours"]}
    assert hours.keys() == {"slow", "broken"}
    assert (hours["slow"]["succeeded"], hours["broken"]["failed"]) == (1, 1)
    assert 0 <= here.tick - hours["slow"]["since"] < 3_600_000
    assert hours["slow"]["late_ms"] > 0
    assert (found["deliveries"], found["missing"]) == ([], {})


# -- acting ----------------------------------------------------------------------------------


async def test_a_run_by_hand_begins_beside_its_request(
    here: World, body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    status, answer = await post(here, "jobs/slow/run")
    assert (status, body.begun.is_set(), body.end.is_set()) == (202, True, False)
    status, conflict = await post(here, "jobs/slow/run")
    assert (status, conflict["title"]) == (409, "Conflict")
    assert "'slow' is running" in conflict["detail"]
    body.end.set()
    (run,) = await ended(here, "slow")
    assert (run["tick"], run["state"], run["origin"]) == (answer["tick"], "succeeded", "manual")
    assert (answer["job"], body.runs, run["late_ms"]) == ("slow", 1, None)
    assert "'on call' ran job slow" in caplog.text
    assert (await post(here, "jobs/broken/run"))[0] == 202
    (failed,) = await ended(here, "broken")
    assert (failed["state"], failed["error"]) == ("failed", "ValueError: no stock")


async def test_a_run_by_hand_has_parameters_that_are_checked_and_kept(
    here: World, body: Body
) -> None:
    body.end.set()
    assert (await get(here, "jobs/slow"))["params"] == {"day": "today", "limit": 3}
    for wrong, complaint in (
        ({"params": {"dya": 1}}, "no parameter 'dya': use of: day, limit"),
        ({"params": {"limit": "4"}}, "is '4': give a whole number, such as 3"),
        ({"params": [1]}, "give an object of the job's parameters"),
        ({"params": {"day": "\ud800"}}, "params of job 'slow' are no JSON"),
        ({"param": {}}, "there is no field 'param': give params"),
        ({"params": {"day": "x" * 17_000}}, "as JSON: give at most 16384"),
    ):
        status, problem_ = await post(here, "jobs/slow/run", wrong)
        assert (status, complaint in problem_["detail"]) == (422, True), problem_
    assert body.runs == 0
    status, answer = await post(here, "jobs/slow/run", {"params": {"limit": 4}})
    assert (status, answer["tick"] % 1000 > 0) == (202, True)
    (run,) = await ended(here, "slow")
    assert (run["tick"], run["params"]) == (answer["tick"], {"day": "today", "limit": 4})
    assert (run["asked_by"], run["origin"], run["progress"]) == ("on call", "manual", None)


async def test_operators_see_how_far_a_run_is(here: World) -> None:
    end = asyncio.Event()

    async def body(run: Run) -> None:
        run.progress(3, 10, "<b>half</b>")
        await end.wait()

    far = job("far", body, lease_ms=900)
    async with world(far) as other:
        running = asyncio.create_task(other.run("far"))
        found: dict[str, Any] = {}

        async def told() -> bool:
            (found["run"],) = (await get(other, "jobs/far"))["runs"] or [None]
            return bool(found["run"] and found["run"]["progress"])

        await until(told)
        assert found["run"]["state"] == "running"
        assert found["run"]["progress"] == {"done": 3, "total": 10, "note": "<b>half</b>"}
        _, page = await other.api.call("GET", "/dashboard", auth=WATCHER)
        assert ": 3 of 10 (30 %): &lt;b&gt;half&lt;/b&gt;" in page
        rows = {each["job"]: each for each in (await other.cron.status())["jobs"]}
        assert rows["far"]["progress"]["done"] == 3
        end.set()
        await running


async def test_a_run_by_hand_waits_for_nobody_elses_lock(here: World, body: Body) -> None:
    async with LockManager(load().redis) as other, other.hold("cron:slow", HOLD_MS):
        status, conflict = await post(here, "jobs/slow/run")
        (lock,) = (await get(here, "locks"))["locks"]
    assert (status, body.runs, lock["ours"]) == (409, 0, False)
    assert lock["owner"] in conflict["detail"]
    assert (await post(here, "jobs/slow/run"))[0] == 202


async def test_a_stop_hands_a_run_by_hand_over_and_starts_no_other(
    calm: pytest.MonkeyPatch, body: Body
) -> None:
    calm.setenv("SOLOCRON_GRACE", "0.1")
    async with world(job("slow", body)) as here:
        assert (await post(here, "jobs/slow/run"))[0] == 202
        await here.cron.drain()
        assert (await post(here, "jobs/slow/run"))[0] == 503
        (run,) = (await get(here, "jobs/slow/runs"))["runs"]
        assert (run["state"], body.runs) == ("running", 1)  # given back, for another server
        assert (await get(here, "locks"))["locks"] == []


async def test_a_pause_keeps_ticks_from_being_run_until_it_is_ended(
    here: World, body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    body.end.set()
    before = here.cron.parts.clock.now_ms()
    status, paused = await post(here, "jobs/slow/pause", {"for_s": 3600})
    assert (status, paused["paused"]) == (200, True)
    assert 0 <= paused["paused_until"] - before - 3_600_000 < 10_000
    await here.run("slow")
    slow = await get(here, "jobs/slow")
    assert (slow["paused"], slow["paused_by"], slow["runs"], body.runs) == (True, "on call", [], 0)
    assert abs(slow["paused_until"] - paused["paused_until"]) < 5_000
    for _ in range(2):
        status, resumed = await post(here, "jobs/slow/resume")
        assert (status, resumed["paused"]) == (200, False)
    await here.run("slow")
    assert ((await get(here, "jobs/slow"))["paused"], body.runs) == (False, 1)
    assert "'on call' paused, for 3600 s, job slow" in caplog.text
    assert caplog.text.count("'on call' resumed job slow") == 1
    assert (await post(here, "jobs/slow/pause"))[0] == 200  # for 7 days
    week_ms = (await get(here, "jobs/slow"))["paused_until"] - here.cron.parts.clock.now_ms()
    assert abs(week_ms - 7 * 86_400_000) < 10_000


async def test_an_operator_deletes_a_lock(
    here: World, body: Body, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await post(here, "jobs/slow/run"))[0] == 202
    own_redis.cli("SET", "precious", "1")
    admin = token(sub="root")

    async def delete(key: str, auth: str = admin) -> int:
        return (await here.api.call("DELETE", f"/api/v1/locks/{key}", auth=auth))[0]

    assert await delete("cron:slow", OPERATOR) == 403
    assert [await delete("cron:slow"), await delete("cron:slow")] == [204, 404]
    assert [await delete(each) for each in ("precious", "x" * 300, "cron:%20x")] == [422] * 3
    assert own_redis.cli("GET", "precious") == "1"
    assert "'root' deleted lock cron:slow" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "jobs/nowhere", None, 404, "'nowhere'"),
        ("GET", "jobs/%00/runs", None, 404, "none of that name"),
        ("POST", "jobs/nowhere/run", None, 404, "'nowhere'"),
        ("POST", "jobs/nowhere/pause", None, 404, "'nowhere'"),
        ("GET", "jobs?runs=101", None, 422, "runs is '101'"),
        ("GET", "jobs/slow/runs?limit=0", None, 422, "limit is '0'"),
        ("GET", "jobs/slow/runs?before=soon", None, 422, "before is 'soon'"),
        ("GET", f"jobs/slow/runs?before={2**53 + 1}", None, 422, "before is"),
        ("GET", "locks?limit=1001", None, 422, "limit is '1001'"),
        ("POST", "jobs/slow/pause", {"for_s": 0}, 422, "for_s is '0'"),
        ("POST", "jobs/slow/pause", {"for_s": 2_592_001}, 422, "to 2592000"),
        ("POST", "jobs/slow/pause", {"for_s": True}, 422, "for_s is 'True'"),
        ("POST", "jobs/slow/pause", {"for_s": [1]}, 422, "for_s is a list"),
        ("POST", "jobs/slow/pause", {"until": 1}, 422, "'until'"),
        ("POST", "jobs/slow/pause", [1], 422, "JSON object"),
        ("POST", "jobs/slow/pause", {"for_s": "x" * 70_000}, 413, ""),
    ],
)
async def test_bad_requests_of_operators_name_the_value(
    calm: pytest.MonkeyPatch, method: str, path: str, body: Any, status: int, says: str
) -> None:
    async with world(job("slow")) as here:
        got, answer = await here.api.call(method, f"/api/v1/{path}", body, auth=token())
    assert (got, answer["status"]) == (status, status)
    assert says in answer["detail"]


# -- who may ---------------------------------------------------------------------------------

READS = ("jobs", "jobs/slow", "jobs/slow/runs", "workers", "locks", "alerts", "summary")
ACTS = ("jobs/slow/run", "jobs/slow/pause", "jobs/slow/resume")


async def test_scopes_decide_who_reads_and_who_acts(calm: pytest.MonkeyPatch) -> None:
    nobody = token(scope="stores:write notifications:read")
    async with world(job("slow")) as here:
        for auth, reads, acts in (
            (None, 401, 401), (nobody, 403, 403), (WATCHER, 200, 403), (OPERATOR, 200, None),
        ):  # fmt: skip
            for path in READS:
                assert (await here.api.call("GET", f"/api/v1/{path}", auth=auth))[0] == reads
            for path in ACTS:
                if acts is not None:
                    assert (await here.api.call("POST", f"/api/v1/{path}", auth=auth))[0] == acts
        path = "/api/v1/locks/cron:x"
        assert (await here.api.call("DELETE", path, auth=OPERATOR))[0] == 403
        assert (await here.api.call("DELETE", path, auth=token()))[0] == 404


async def test_only_a_page_of_this_host_acts_by_the_browsers_password(
    calm: pytest.MonkeyPatch,
) -> None:
    """What a browser sends along by itself is no consent: of a page elsewhere, even one that may
    read notifications, nothing is done."""
    calm.setenv("SOLOCRON_ORIGINS", "https://shop.example")
    async with world(job("slow")) as here:
        own = f"http://127.0.0.1:{here.api.port}"
        password = {"Authorization": basic(token())}
        assert (await here.api.call("GET", "/api/v1/jobs", **password))[0] == 200
        for origin, status in (
            (own, 200), ("https://evil.example", 403), ("https://shop.example", 403),
            ("null", 403), (None, 403),
        ):  # fmt: skip
            headers = {**password, **({"Origin": origin} if origin else {})}
            answer = await here.api.call("POST", "/api/v1/jobs/slow/resume", **headers)
            assert answer[0] == status, origin
        foreign = {"auth": token(), "Origin": "https://evil.example"}
        assert (await here.api.call("POST", "/api/v1/jobs/slow/resume", **foreign))[0] == 403
        assert (await here.api.call("GET", "/api/v1/jobs", Authorization=basic("x")))[0] == 401


# -- without Redis or the database -------------------------------------------------------------


async def test_without_redis_the_ledger_is_still_told(
    here: World, own_redis: RedisServer, body: Body
) -> None:
    body.end.set()
    await here.run("slow")
    own_redis.stop()
    slow = await get(here, "jobs/slow")
    assert slow["missing"].keys() == {"redis"}
    assert (slow["owner"], slow["paused"], slow["settled_tick"]) == (None, None, None)
    assert [each["tick"] for each in slow["runs"]] == [here.tick]
    assert (await get(here, "jobs/slow/runs"))["next"] is None
    workers = await get(here, "workers")
    assert [each["here"] for each in workers["workers"]] == [True]
    assert workers["missing"].keys() == {"redis"}
    locks = await get(here, "locks")
    assert (locks["locks"], locks["missing"].keys()) == ([], {"redis"})
    assert (await get(here, "summary"))["missing"] == {}
    for count in (1, 2, 3):
        assert (await post(here, "jobs/broken/run"))[0] == 202  # the ledger admits it
        await ended(here, "broken", count)

    async def told() -> bool:
        alerts = (await get(here, "alerts"))["alerts"]
        found = {(each["alert"], each["job"]) for each in alerts}
        return found >= {("lock-unavailable", "broken"), ("job-failed", "broken")}

    await until(told)
    for path in ("pause", "resume"):
        status, answer = await post(here, f"jobs/slow/{path}")
        assert (status, "Redis" in answer["detail"]) == (503, True)
    own_redis.start()

    async def known() -> bool:
        return (await get(here, "jobs/slow"))["missing"] == {}

    await until(known)


async def test_without_redis_a_worker_runs_a_job_by_hand_once_at_a_time(
    here: World, own_redis: RedisServer, body: Body
) -> None:
    own_redis.stop()
    assert [(await post(here, "jobs/slow/run"))[0] for _ in range(2)] == [202, 409]
    body.end.set()
    (run,) = await ended(here, "slow")
    assert (run["state"], run["fallback"], body.runs) == ("succeeded", True, 1)


async def test_without_the_database_redis_is_still_told(
    calm: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calm.setenv("DATABASE_URL", "postgresql://user:s3cret@127.0.0.1:9/none")
    cron_world = world(job("slow"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Api, "ready", lambda self: asyncio.sleep(0))
        async with cron_world as here:
            async with LockManager(load().redis) as other, other.hold("cron:slow", HOLD_MS):
                slow = await get(here, "jobs/slow")
            assert slow["missing"].keys() == {"database"}
            assert (slow["runs"], bool(slow["owner"])) == (None, True)
            summary = await get(here, "summary")
            assert (summary["stores"], summary["deliveries"], summary["hours"]) == (None,) * 3
            status, answer = await here.api.call("GET", "/api/v1/jobs/slow/runs", auth=WATCHER)
            assert (status, answer) == (503, json.loads(problem_text()))
            assert (await post(here, "jobs/slow/run"))[0] == 503
            assert (await post(here, "jobs/slow/pause"))[0] == 200
            assert "s3cret" not in json.dumps([slow, summary])
    assert not [each for each in caplog.records if each.levelno > logging.WARNING]


def problem_text() -> str:
    text = problem(503, "Unavailable", "the database is not reachable; try again later").text
    assert text is not None
    return text


async def test_a_page_of_this_host_listens_by_the_browsers_password(
    calm: pytest.MonkeyPatch,
) -> None:
    """The password of another page, or one that is no token, counts for nothing."""
    calm.setenv("SOLOCRON_ORIGINS", "https://shop.example")
    async with world(job("slow")) as here, aiohttp.ClientSession() as http:
        own = f"http://127.0.0.1:{here.api.port}"
        for password, origin, is_heard in (
            (token(), own, True), (token(), "https://shop.example", False), (token(), None, False),
            ("a proxy's", own, False),
        ):  # fmt: skip
            headers = {"Authorization": basic(password), **({"Origin": origin} if origin else {})}
            async with http.ws_connect(f"{own}/ws", protocols=[PROTOCOL], headers=headers) as ws:
                if not is_heard:
                    await ws.send_json({"type": "authenticate", "token": token()})
                    assert (await ws.receive_json())["type"] == "authenticated"
                await ws.send_json({"type": "subscribe", "stores": {"*": None}})
                assert (await ws.receive_json())["type"] == "subscribed"
            async with http.ws_connect(f"{own}/ws", protocols=[PROTOCOL], headers=headers) as ws:
                await ws.send_json({"type": "subscribe", "stores": {"*": None}})
                answer = await ws.receive()
                assert (answer.type is WSMsgType.TEXT) == is_heard, (password, origin)
