"""What operators ask of a fleet of real workers, and tell it: history, explain, pause, resume."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from test_web import serving, token

from commands import Cli
from conftest import RedisServer, free_port
from solocron.cron.ticks import Calendar
from solocron.cron.wording import moment
from solocron.web.ticks import explanation_schema
from workers import Worker, prepare, until, wall_ms

JOB = "tick-test"
EVERY_OTHER_SECOND = Calendar("*/2 * * * * *")
NOWHERE = "postgresql://u@127.0.0.1:1/none"
DEAD_REDIS = "redis://127.0.0.1:1/0"


@dataclass
class Fleet:
    """Two workers that host the job, and an operator's command line beside them."""

    cli: Cli
    redis: RedisServer
    workers: list[Worker]

    async def told(self, *args: str, **variables: str) -> Any:
        result = await self.cli(*args, "--json", **variables)
        assert result.code == 0, result.err
        return json.loads(result.out)

    async def explained(self, tick: int | None = None, **variables: str) -> Any:
        about = () if tick is None else ("--tick", str(tick))
        return await self.told("explain", JOB, *about, **variables)

    async def comes_to(self, verdict: str, after_ms: float) -> Any:
        """The explanation of the first tick after a time that a worker has such a verdict on."""
        async with asyncio.timeout(60):
            while True:
                for tick in EVERY_OTHER_SECOND.between(after_ms, wall_ms(), 5):
                    told = await self.explained(tick)
                    if verdict in {each["verdict"] for each in told["workers"]}:
                        return told

    def of(self, told: Any, worker: Worker) -> Any:
        """What is told of a worker."""
        pid = str(worker.process.pid)
        (found,) = [each for each in told["workers"] if each["worker"].split(":")[1] == pid]
        return found


async def start(redis: RedisServer, database: str, folder: Path, **options: Any) -> Fleet:
    await (await prepare(database)).close()
    job = {"schedule": EVERY_OTHER_SECOND.expression, **options.pop("job", {})}
    settings = {"sweep": 0.5, "lease": 2, **options}
    workers = await asyncio.gather(
        *(
            Worker.start(redis=redis.url, database=database, job={**job, "name": name}, **settings)
            for name in ("w0", "w1")
        )
    )
    variables = {f"SOLOCRON_{name.upper()}": str(value) for name, value in settings.items()}
    cli = Cli(folder, {"REDIS_URL": redis.url, "DATABASE_URL": database, **variables})
    return Fleet(cli, redis, list(workers))


async def stop(fleet: Fleet) -> None:
    await asyncio.gather(*(worker.stop() for worker in fleet.workers))
    await fleet.cli.close()


@pytest.fixture
async def fleet(own_redis: RedisServer, database_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = await start(own_redis, database_url, tmp_path)
    yield fleet
    await stop(fleet)


async def test_who_ran_a_tick_and_why_the_other_did_not(fleet: Fleet) -> None:
    first = await fleet.comes_to("ran", wall_ms())
    told = await fleet.comes_to("ran", first["tick"])
    assert told["state"] == "succeeded" and told["is_tick"] and told["remedy"] == ""
    assert told["ledger"]["counts"] == {"effects": 1}
    (ran,) = [each for each in told["workers"] if each["verdict"] == "ran"]
    assert ran["text"].startswith("ran it, ") and ran["alive"]
    assert ran["worker"].startswith(told["ledger"]["owner"] + ":")
    for other in told["workers"]:
        assert other is ran or other["verdict"] in ("held", "done", None)
    begin = (await fleet.told("history", JOB, "--limit", "1000"))[-1]["tick"]
    before = await fleet.explained(begin - 2000)
    assert before["state"] == "not-run" and "a new job begins with its first" in before["text"]
    text = (await fleet.cli("explain", JOB, "--tick", str(told["tick"]))).out
    assert f"succeeded: it was run by {told['ledger']['owner']} (attempt 1)" in text
    rows = await fleet.told("history", JOB, "--limit", "2")
    assert len(rows) == 2 and rows[0]["tick"] > rows[1]["tick"]
    assert rows[1]["counts"] == {"effects": 1} and rows[1]["state"] == "succeeded"
    table = await fleet.cli("history", JOB)
    assert "effects 1" in table.out and told["ledger"]["owner"] in table.out


async def test_the_dead_worker_is_named(fleet: Fleet) -> None:
    await fleet.comes_to("ran", wall_ms())
    dead, alive = fleet.workers
    await dead.kill()
    killed_ms = wall_ms()

    async def silent() -> bool:
        return not fleet.of(await fleet.explained(), dead)["alive"]

    await until(silent)
    told = await fleet.comes_to("ran", killed_ms + 2000)
    gone = fleet.of(told, dead)
    assert gone["text"].startswith("was dead by then: last seen ")
    assert "its log" in gone["remedy"] and gone["verdict"] is None
    assert fleet.of(told, alive)["verdict"] == "ran"
    await alive.stop()
    told = await fleet.explained(EVERY_OTHER_SECOND.next_after(wall_ms() - 2000))
    assert told["state"] == "not-run" or told["state"] == "succeeded"

    async def nobody() -> bool:
        told = await fleet.explained()
        return told["state"] == "not-run" and "no server is up" in told["text"]

    await until(nobody)


async def test_a_pause_is_named_with_its_end_and_its_maker(fleet: Fleet) -> None:
    paused = await fleet.told("pause", JOB, "--for", "2h")
    assert abs(paused["until"] - wall_ms() - 7_200_000) < 60_000 and "@" in paused["by"]
    told = await fleet.comes_to("paused", wall_ms())
    assert told["state"] == "skipped" and told["remedy"] == f"solocron resume {JOB}"
    assert told["pause"]["by"] == paused["by"]
    assert abs(told["pause"]["until"] - paused["until"]) < 60_000
    key = "{cron:tick-test}:paused"
    assert 7_100_000 < int(fleet.redis.cli("PTTL", key)) <= 7_200_000
    resumed = await fleet.cli("resume", JOB)
    assert resumed.out == f"{JOB} goes on.\n"
    again = await fleet.cli("resume", JOB)
    assert (again.code, again.out) == (0, f"{JOB} was not paused.\n")
    assert (await fleet.comes_to("ran", wall_ms()))["pause"] is None


async def test_a_lock_of_the_original_system_is_what_it_waits_for(fleet: Fleet) -> None:
    fleet.redis.cli("SET", "cron:tick-test", "locked", "PX", "600000")
    told = await fleet.comes_to("held", wall_ms() + 2000)
    assert told["state"] == "waiting"
    assert "held by locked" in told["text"] and "solocron unlock cron:tick-test" in told["remedy"]
    assert told["lock"]["owner"] == "locked" and not told["lock"]["silent"]


async def test_without_redis_the_ledger_is_told_and_afterwards_the_fallback(fleet: Fleet) -> None:
    await fleet.comes_to("ran", wall_ms())
    fleet.redis.stop()
    since = wall_ms()
    down = await fleet.cli("explain", JOB, "--json")
    assert down.code == 2 and "Redis" in down.complaint  # that of other services is not known
    known = await fleet.cli("explain", "store-auto-close", "--json")
    assert known.code == 0
    told = json.loads(known.out)
    assert told["notes"][0]["about"] == "redis" and told["workers"] == []
    both = await fleet.cli("explain", "store-auto-close", DATABASE_URL=NOWHERE)
    assert both.code == 3 and "neither Redis nor the database" in both.complaint
    await fleet.workers[0].saw(lambda event: event.get("fallback"))
    fleet.redis.start()

    async def is_known() -> bool:  # by what the servers put on the board again
        return (await fleet.cli("explain", JOB, "--json")).code == 0

    await until(is_known)
    told = await fleet.comes_to("fallback", since - 2000)
    assert told["state"] == "succeeded" and told["ledger"]["fallback"]
    assert "without Redis" in told["text"]


async def test_without_the_database_the_servers_words_are_told(fleet: Fleet) -> None:
    tick = (await fleet.comes_to("ran", wall_ms()))["tick"]
    told = await fleet.explained(tick, DATABASE_URL=NOWHERE)
    assert told["state"] == "succeeded" and " ran it, " in told["text"]
    assert told["ledger"] is None and told["notes"][0]["about"] == "database"
    history = await fleet.cli("history", JOB, DATABASE_URL=NOWHERE)
    assert history.code == 3 and NOWHERE in history.complaint


async def test_an_owner_that_died_with_a_tick_is_named(
    own_redis: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    fleet = await start(own_redis, postgres_url, tmp_path, job={"body_ms": 60_000}, lease=30)
    begun = [
        asyncio.create_task(each.saw(lambda event: event["event"] == "start"))
        for each in fleet.workers
    ]
    done, waiting = await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
    tick = next(iter(done)).result()["tick"]
    owner = fleet.workers[begun.index(next(iter(done)))]
    for each in waiting:
        each.cancel()
    assert (await fleet.explained(tick))["state"] == "running"
    await owner.kill()

    async def silent() -> bool:
        return (await fleet.explained(tick))["state"] == "silent"

    await until(silent)
    told = await fleet.explained(tick)
    assert f":{owner.process.pid} (attempt 1)" in told["text"] and "last seen" in told["text"]
    assert fleet.of(told, owner)["text"].startswith("died with it, or after it")
    for each in fleet.workers:
        if each is not owner:
            await each.kill()
    await stop(fleet)


async def test_a_tick_nobody_was_there_for_is_missed(
    own_redis: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    fleet = await start(own_redis, postgres_url, tmp_path, catch_up=0)
    await fleet.comes_to("ran", wall_ms())
    for each in fleet.workers:
        each.signal(signal.SIGSTOP)
    frozen = wall_ms()

    async def long_ago() -> bool:
        return wall_ms() > frozen + 10_000

    await until(long_ago)
    for each in fleet.workers:
        each.signal(signal.SIGCONT)
    told = await fleet.comes_to("missed", frozen)
    assert told["state"] == "skipped" and "catch-up window" in told["text"]
    assert told["remedy"].endswith(f"solocron run {JOB}")
    await stop(fleet)


async def test_workers_with_other_schedules_are_named(fleet: Fleet, own_redis: RedisServer) -> None:
    other = await Worker.start(
        redis=own_redis.url, database=fleet.cli.variables["DATABASE_URL"], sweep=0.5,
        job={"name": "w2", "schedule": "*/3 * * * * *"},
    )  # fmt: skip
    told = await fleet.comes_to("ran", wall_ms())

    async def noticed() -> bool:
        nonlocal told
        told = await fleet.explained()
        return any(each["about"] == "schedules" for each in told["notes"])

    await until(noticed)
    (note,) = [each for each in told["notes"] if each["about"] == "schedules"]
    assert note["text"].endswith(" run it by '*/3 * * * * * UTC', not '*/2 * * * * * UTC'")
    assert "SOLOCRON_TIMEZONE" in note["remedy"]
    doctor = await fleet.cli("doctor", "--json")
    found = [each for each in json.loads(doctor.out)["findings"] if each["about"] == JOB]
    assert doctor.code == 1 and note["text"] in [each["text"] for each in found]
    await other.stop()


async def test_the_fleets_other_jobs_are_named_where_their_code_is_not(fleet: Fleet) -> None:
    await fleet.comes_to("ran", wall_ms())
    also = f"this fleet also runs: {JOB} (name its code in SOLOCRON_APP to run it from here)"
    jobs = await asyncio.gather(fleet.cli("jobs"), fleet.cli("status"))
    assert all(also in each.out for each in jobs) and "*/2" in jobs[0].out
    status, listed = await fleet.told("status"), await fleet.told("jobs")
    assert status["servers_up"] == 2
    for rows in (status["jobs"], listed):
        assert {each["job"]: each["here"] for each in rows} == {
            "store-auto-close": True, "store-open-reminder": True, JOB: False,
        }  # fmt: skip
    assert status["jobs"][2]["last_tick"] is not None and listed[2]["ttl_s"] is None
    run = await fleet.cli("run", JOB)
    assert run.code == 2 and "in SOLOCRON_APP to run it from here" in run.complaint
    assert "nothing runs" not in jobs[1].out
    await asyncio.gather(*(each.stop() for each in fleet.workers))
    assert "no server is up: nothing runs\n" in (await fleet.cli("status")).out


# -- by REST -------------------------------------------------------------------------------


async def test_a_tick_is_explained_by_rest(environment: pytest.MonkeyPatch) -> None:
    path = "/api/v1/jobs/store-auto-close/ticks"
    async with serving() as api:

        async def get(tick: str, scope: str = "metrics:read") -> tuple[int, Any]:
            return await api.call("GET", f"{path}/{tick}", auth=token(scope=scope))

        assert (await get("latest", "notifications:read"))[0] == 403
        assert (await api.call("GET", f"{path}/latest"))[0] == 401
        status, told = await get("2026-11-26T06:00", "jobs:run")
        assert status == 200 and told["is_tick"] and told["lock"] is told["ledger"] is None
        Draft202012Validator(explanation_schema()).validate(told)
        await api.cron.parts.locks.pause("cron:store-auto-close", by="ops")
        ran = await api.cron.run_job("store-auto-close")
        (run,) = await api.cron.parts.ledger.history("store-auto-close")
        status, told = await get(str(run["tick"]))
        assert status == 200 and ran.state == told["state"] == "succeeded"
        assert told["ledger"]["origin"] == "manual" and told["pause"]["by"] == "ops"
        Draft202012Validator(explanation_schema()).validate(told)
        assert (await get("noon"))[0] == 422
        status, problem = await api.call("GET", path.replace("auto", "no") + "/1", auth=token())
        assert status == 404 and "store-no-close" in problem["detail"]


async def test_what_was_run_in_place_of_a_tick_stays_the_same(
    environment: pytest.MonkeyPatch,
) -> None:
    name, owners = "store-open-reminder", {"owner": "w1:1", "lease_ms": 60_000, "max_attempts": 3}
    async with serving() as api:
        calendar, ledger = api.cron.jobs[name].calendar, api.cron.parts.ledger
        now = int(wall_ms())
        left_out, filled, run, later = calendar.between(now - 6 * 86_400_000, now, 280)[::75]

        async def said() -> Any:
            return await api.cron.inquiry.explain(name, str(left_out))

        assert (await said())["state"] == "not-run"
        first = calendar.latest_at(left_out - 1)
        assert first is not None
        await ledger.begin(name, first, now_ms=now, **owners)
        for tick, origin in ((filled, "backfill"), (run - 7, "manual"), (run, "schedule"),
                             (later, "schedule")):  # fmt: skip
            await ledger.begin(name, tick, now_ms=now, origin=origin, **owners)
            if tick < run:
                assert "in its place" not in (await said())["text"]
            else:
                told = await said()
                assert told["state"] == "skipped"
                assert f"left out: {moment(run)} was run in its place" in told["text"]


# -- arguments -----------------------------------------------------------------------------


@pytest.fixture
async def small(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> AsyncIterator[Cli]:
    cli = Cli(tmp_path, {"REDIS_URL": redis_server.url, "DATABASE_URL": sqlite_url})
    assert (await cli("migrate")).code == 0
    yield cli
    await cli.close()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("history", "nightly"), "use one of store-auto-close, store-open-reminder"),
        (("explain", "nightly"), "'nightly'"),
        (("pause", "nightly"), "'nightly'"),
        (("resume", "nightly"), "'nightly'"),
        (("pause", "store-auto-close", "--for", "0s"), "'0s'"),
        (("pause", "store-auto-close", "--for", "31d"), "at most 30d"),
        (("pause", "store-auto-close", "--for", "²h"), "at most 30d"),
        (("explain", "store-auto-close", "--tick", "noon"), "--tick is 'noon'"),
        (("explain", "store-auto-close", "--tick", "99999999999999"), "before the year 2100"),
    ],
)
async def test_what_cannot_be_asked(small: Cli, args: tuple[str, ...], told: str) -> None:
    result = await small(*args)
    assert (result.code, result.out) == (2, "") and told in result.complaint


async def test_a_paused_job_in_the_status(small: Cli, redis_server: RedisServer) -> None:
    paused = await small("pause", "store-auto-close")
    assert "is paused until " in paused.out and "solocron resume store-auto-close" in paused.out
    assert 6.9 < int(redis_server.cli("TTL", "{cron:store-auto-close}:paused")) / 86_400 <= 7
    status, as_json = await asyncio.gather(small("status"), small("status", "--json"))
    assert "until 20" in status.out and "@" in status.out
    row = json.loads(as_json.out)["jobs"][0]
    assert row["paused"] is True and row["paused_until"] > wall_ms() and "@" in row["paused_by"]
    assert (await small("run", "store-auto-close")).code == 0  # by hand it may be run
    redis_server.cli("SET", "{cron:store-auto-close}:paused", "")  # as nobody of ours writes it
    assert json.loads((await small("status", "--json")).out)["jobs"][0]["paused"] is True


@pytest.mark.parametrize("command", ["pause", "resume"])
async def test_no_pause_without_redis(small: Cli, command: str) -> None:
    result = await small(command, "store-auto-close", REDIS_URL=DEAD_REDIS)
    assert (result.code, result.out) == (3, "") and "Redis" in result.complaint
    url = f"redis://127.0.0.1:{free_port()}/0"
    assert (await small(command, "store-auto-close", REDIS_URL=url)).code == 3


async def test_a_time_that_does_not_exist(small: Cli) -> None:
    cairo = {"SOLOCRON_TIMEZONE": "Africa/Cairo"}
    asked = ("explain", "store-auto-close", "--tick")
    result = await small(*asked, "2026-04-24T00:00", "--json", **cairo)
    told = json.loads(result.out)
    assert told["local_time"] == "2026-04-24T01:00:00+03:00" and told["is_tick"]
    assert "does not exist in Africa/Cairo" in told["notes"][0]["text"]
    none = json.loads((await small(*asked, "2026-04-24T02:00", "--json", **cairo)).out)
    assert none["state"] == "no-tick" and not none["is_tick"]
    assert none["previous_tick"] == told["tick"]
    assert "2026-04-23T22:00:00+00:00" in none["text"]  # 01:00 there, in UTC
    future = json.loads((await small(*asked, "2099-01-01T06:00", "--json", **cairo)).out)
    assert future["state"] == "not-due"
