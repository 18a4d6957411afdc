"""The command line as its users meet it: results on stdout, one line for a mistake, exit codes."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import pty
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from commands import Cli, finished, listening
from conftest import SECRET, RedisServer, free_port
from solocron.clock import SystemClock
from solocron.storage.engine import Database
from solocron.web.auth import Authenticator
from workers import table_locked, until

COMMANDS = ("serve", "migrate", "jobs", "run", "status", "locks", "unlock", "token", "demo",
            "history", "explain", "pause", "resume", "doctor", "alerts", "deadletters",
            "stores list", "stores import")  # fmt: skip
HEADER = "id,name,timezone,hours,is_open\n"
GOOD = HEADER + "1,Mitte,Europe/Berlin,off,true\n2,Süd,Europe/Berlin,24/7,true\n"
NOWHERE = "postgresql://u@127.0.0.1:1/none"
OTHER_SERVER = "elsewhere:1:abcdef:-1"


@asynccontextmanager
async def commands(folder: Path, redis: RedisServer, database: str) -> AsyncIterator[Cli]:
    cli = Cli(folder, {"REDIS_URL": redis.url, "DATABASE_URL": database})
    yield cli
    await cli.close()


@pytest.fixture
async def cli(tmp_path: Path, redis_server: RedisServer, database_url: str) -> AsyncIterator[Cli]:
    """On both databases, not migrated."""
    async with commands(tmp_path, redis_server, database_url) as cli:
        yield cli


@pytest.fixture
async def small(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> AsyncIterator[Cli]:
    """On SQLite, for what does not depend on the database."""
    async with commands(tmp_path, redis_server, sqlite_url) as cli:
        yield cli


@pytest.fixture
async def large(tmp_path: Path, redis_server: RedisServer, postgres_url: str) -> AsyncIterator[Cli]:
    """On PostgreSQL, migrated: a run can be made to wait for a lock in it."""
    async with commands(tmp_path, redis_server, postgres_url) as cli:
        await cli("migrate")
        yield cli


def written(cli: Cli, content: str, name: str = "stores.csv") -> str:
    (cli.folder / name).write_text(content, encoding="utf-8")
    return name


async def ids(cli: Cli) -> list[str]:
    listed = await cli("stores", "list", "--json")
    return [each["id"] for each in json.loads(listed.out)]


async def count(url: str) -> int:
    database = Database(url)
    async with database.connect() as connection:
        found = int((await connection.execute(text("SELECT count(*) FROM stores"))).scalar_one())
    await database.close()
    return found


# -- help and arguments --------------------------------------------------------------------


async def test_every_command_has_help_worth_reading(small: Cli) -> None:
    top = await small("--help")
    assert top.code == 0 and "REDIS_URL" in top.out
    helps = await asyncio.gather(*(small(*each.split(), "--help") for each in COMMANDS))
    for command, result in zip(COMMANDS, helps, strict=True):
        assert result.code == 0
        usage, told = result.out.split("\n", 1)
        assert usage.startswith(f"Usage: solocron {command}")
        assert len(told.split()) > 12, f"{command} is not explained"
        assert command.split()[0] in top.out


@pytest.mark.parametrize(
    "args",
    [("bogus",), ("run",), ("stores", "list", "--limit", "0"), ("token", "--days", "-1")],
    ids=" ".join,
)
async def test_a_wrong_argument_is_exit_code_2(small: Cli, args: tuple[str, ...]) -> None:
    result = await small(*args)
    assert result.code == 2
    assert "Error: " in result.err and not result.out


# -- migrate -------------------------------------------------------------------------------


async def test_migrate_twice_and_at_once(cli: Cli) -> None:
    both = await asyncio.gather(cli("migrate"), cli("migrate"))
    again = await cli("migrate")
    for result in (*both, again):
        assert (result.code, result.err) == (0, "")
        assert "is migrated" in result.out
    assert await ids(cli) == []


async def test_a_schema_of_a_newer_release_is_told(cli: Cli) -> None:
    await cli("migrate")
    database = Database(cli.variables["DATABASE_URL"])
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    result = await cli("migrate")
    assert result.code == 3
    assert "'9999'" in result.complaint and "install the newer release" in result.complaint
    assert "9999" in (await cli("status")).complaint


# -- jobs, run -----------------------------------------------------------------------------


async def test_jobs_are_listed_whole(small: Cli) -> None:
    table, as_json = await asyncio.gather(small("jobs"), small("jobs", "--json"))
    assert "cron:store-open-reminder " in table.out and "…" not in table.out
    rows = json.loads(as_json.out)
    assert [row["lock_key"] for row in rows] == ["cron:store-auto-close",
                                                 "cron:store-open-reminder"]  # fmt: skip
    assert rows[1]["schedule"] == "*/30 * * * *" and rows[1]["ttl_s"] == 300
    assert (table.code, table.err, as_json.code, as_json.err) == (0, "", 0, "")


async def test_run_does_the_job_once_and_tells_the_counts(
    cli: Cli, redis_server: RedisServer
) -> None:
    await cli("migrate")
    await cli("stores", "import", written(cli, GOOD))
    first = await cli("run", "store-auto-close")
    again = await cli("run", "store-auto-close")
    assert (first.code, again.code) == (0, 0)
    assert first.out.startswith("store-auto-close: succeeded in ")
    assert first.out.endswith(" ms: closed 1\n") and again.out.endswith(" ms: closed 0\n")
    assert "Starting store auto-close cron job..." in first.err
    assert redis_server.cli("KEYS", "cron:*") == ""
    row = json.loads((await cli("status", "--json")).out)["jobs"][0]
    assert (row["state"], row["attempt"]) == ("succeeded", 1)


OWN = """
from solocron import Run, Solocron

cron = Solocron.from_env()


@cron.job("0 3 * * *", params={"day": "today", "limit": 3})
def report(run: Run) -> dict[str, object]:
    run.progress(1, 2, "half")
    return dict(run.params)
"""


async def test_a_job_of_ones_own_is_run_with_parameters_and_its_result_is_shown(cli: Cli) -> None:
    (cli.folder / "own.py").write_text(OWN)
    cli.variables["SOLOCRON_APP"] = "own:cron"
    await cli("migrate")
    ran = await cli("run", "report", "--param", "limit=4", "--param", "day=7")
    assert (ran.code, ran.out.split(": ", 2)[2]) == (0, '{"day":"7","limit":4}\n')
    wrong = await cli("run", "report", "--param", "limit=four")
    assert wrong.code == 2
    assert "'limit' of job 'report' is 'four': give a whole number, such as 3" in wrong.complaint
    (row,) = json.loads((await cli("history", "report", "--json")).out)
    assert (row["params"], row["result"]) == ({"day": "7", "limit": 4},) * 2
    assert "@" in row["asked_by"] and row["origin"] == "manual"
    assert row["progress"] == {"done": 1, "total": 2, "note": "half"}
    table = (await cli("history", "report")).out
    assert "1 of 2 (50 %): half" in table and row["asked_by"] in table
    told = await cli("explain", "report", "--tick", str(row["tick"]))
    assert f"by hand of {row['asked_by']}" in told.out
    assert re.search(r"^ledger: begun .*\+00:00, ended .*; parameters .*; result ", told.out, re.M)


async def test_backfill_runs_what_a_span_lacks_and_goes_on_after_ctrl_c(cli: Cli) -> None:
    body = "    if (n := run.tick // 86_400_000 % 7) == 3 and run.attempt == 1: run.progress(n)\n"
    slow = "    while run.attempt == 1 and n == 3: run.ensure_leased(); time.sleep(0.05)\n"
    text = OWN.replace('    run.progress(1, 2, "half")\n', body + slow)
    (cli.folder / "own.py").write_text(f"import time\n{text}")
    cli.variables.update(SOLOCRON_APP="own:cron", SOLOCRON_LEASE="1")
    await cli("migrate")
    span = ("backfill", "report", "--from", "2026-01-01", "--to", "2026-01-07T03:00Z")
    dry = await cli(*span, "--dry-run")
    assert dry.out.startswith("report: 7 of 7 ticks have no run that succeeded\n2026-01-01T03:00")
    process = await cli.start(*span)

    async def hangs() -> bool:
        rows = json.loads((await cli("history", "report", "--json")).out)
        return bool(rows and rows[0]["progress"])

    await until(hangs)
    process.send_signal(signal.SIGINT)
    stopped = await finished(process)
    assert stopped.code == 130
    assert "of 7 ticks are done: the same command goes on there" in stopped.complaint
    rest, done = await cli(*span), await cli(*span)
    assert (rest.code, "0 failed" in rest.out) == (0, True), rest.err
    assert done.out.startswith("report: 0 of 7 ticks")
    rows = json.loads((await cli("history", "report", "--json")).out)
    assert [row["state"] for row in rows] == ["succeeded"] * 7
    assert Counter(row["attempt"] for row in rows) == {1: 6, 2: 1}
    assert {row["origin"] for row in rows} == {"backfill"}


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        (("--from", "yesterday", "--to", "2026-01-01"), 2, "--from is 'yesterday': give a time"),
        (("--from", "2026-01-02", "--to", "2026-01-01"), 2, "give a time, and one after it"),
        (("--from", "1970-01-02", "--to", "2026-01-01"), 2, "give a shorter one: the first 10000"),
    ],
)
async def test_a_span_that_cannot_be_backfilled_is_named(
    small: Cli, args: tuple[str, ...], code: int, complaint: str
) -> None:
    await small("migrate")
    result = await small("backfill", "store-auto-close", *args)
    assert (result.code, complaint in result.complaint) == (code, True), result.err


@pytest.mark.parametrize(
    ("app", "complaint"),
    [
        ("own", "SOLOCRON_APP is 'own': give module:name, such as report:cron"),
        ("nowhere:cron", "SOLOCRON_APP is 'nowhere:cron': No module named 'nowhere'"),
        (
            "broken:cron",
            "SOLOCRON_APP is 'broken:cron': importing broken raised KeyError: 'STRIPE' (",
        ),
        ("broken:cron", "broken.py, line 2): mend that, or set what it needs"),
        ("own:nothing", "SOLOCRON_APP is 'own:nothing': own has no Solocron of that name"),
        ("own:Run", "SOLOCRON_APP is 'own:Run': own has no Solocron of that name"),
    ],
)
async def test_an_app_that_is_none_is_named(small: Cli, app: str, complaint: str) -> None:
    (small.folder / "own.py").write_text(OWN)
    (small.folder / "broken.py").write_text("import os\nKEY = os.environ['STRIPE']\n")
    result = await small("jobs", SOLOCRON_APP=app)
    assert (result.code, complaint in result.complaint) == (2, True), result.err


async def test_run_of_an_unknown_job_names_the_known_ones(small: Cli) -> None:
    result = await small("run", "store-auto-clsoe")
    assert result.code == 2
    assert "'store-auto-clsoe'" in result.complaint and "store-auto-close" in result.complaint


async def test_run_is_skipped_while_another_server_runs_it(
    small: Cli, redis_server: RedisServer
) -> None:
    await small("migrate")
    redis_server.cli("SET", "cron:store-auto-close", "old-server", "PX", "60000")
    result = await small("run", "store-auto-close")
    assert result.code == 3 and result.out == ""
    assert "another server is running it: old-server" in result.complaint
    assert redis_server.cli("GET", "cron:store-auto-close") == "old-server"


@pytest.mark.parametrize("url", [NOWHERE, "sqlite:////no/such/folder/x.db"])
async def test_commands_without_a_database(small: Cli, url: str, redis_server: RedisServer) -> None:
    file = written(small, GOOD)
    for args in (("run", "store-auto-close"), ("migrate",), ("stores", "list"),
                 ("stores", "import", file), ("status",)):  # fmt: skip
        result = await small(*args, DATABASE_URL=url)
        assert result.code == 3
        assert f"database {url}: " in result.complaint
    assert redis_server.cli("KEYS", "cron:*") == ""


async def test_commands_before_the_migration_name_it(cli: Cli) -> None:
    file = written(cli, GOOD)
    commands = [("run", "store-auto-close"), ("stores", "list"), ("status",)]
    if "postgresql" in cli.variables["DATABASE_URL"]:
        commands.append(("stores", "import", file))  # SQLite is migrated on the way
    for args in commands:
        result = await cli(*args)
        assert result.code == 3
        assert result.complaint.endswith(" is not migrated: run `solocron migrate`")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_hands_its_tick_over(
    cli: Cli, redis_server: RedisServer, number: signal.Signals
) -> None:
    await cli("migrate")
    async with table_locked(cli.variables["DATABASE_URL"]):
        process = await cli.start("run", "store-auto-close")
        await until(lambda: locked(redis_server))
        process.send_signal(number)
        result = await finished(process)
    assert result.code == 130
    assert redis_server.cli("KEYS", "*cron:*") == "{cron:store-auto-close}:settled" or (
        redis_server.cli("KEYS", "*cron:*") == ""
    )


async def locked(redis: RedisServer, key: str = "cron:store-auto-close") -> bool:
    return redis.cli("EXISTS", key) == "1"


# -- status, locks, unlock -----------------------------------------------------------------


async def test_status(cli: Cli, redis_server: RedisServer) -> None:
    await cli("migrate")
    redis_server.cli("SET", "cron:store-auto-close", "old-server", "PX", "60000")
    up, as_json = await asyncio.gather(cli("status"), cli("status", "--json"))
    assert (up.code, up.err) == (0, "")
    assert "redis: up   database: up" in up.out and "old-server" in up.out
    assert json.loads(as_json.out)["jobs"][0]["owner"] == "old-server"
    dead = f"redis://127.0.0.1:{free_port()}/0"
    down = await cli("status", REDIS_URL=dead)
    assert down.code == 3 and "redis: down   database: up" in down.out
    assert "127.0.0.1" in down.complaint
    both = await cli("status", "--json", REDIS_URL=dead, DATABASE_URL=NOWHERE)
    state = json.loads(both.out)
    assert both.code == 3
    assert (state["redis"], state["database"]) == ("down", "down")
    assert both.err.splitlines() == [f"solocron: {each}" for each in state["problems"]]
    assert len(state["jobs"]) == 2


async def test_locks_and_unlock(small: Cli, redis_server: RedisServer) -> None:
    assert json.loads((await small("locks", "--json")).out) == []
    redis_server.cli("SET", "cron:nightly", "old-server\x1b[31m", "PX", "60000")
    table, as_json = await asyncio.gather(small("locks"), small("locks", "--json"))
    assert "cron:nightly" in table.out and "\x1b" not in table.out
    assert 0 < json.loads(as_json.out)[0]["ttl_ms"] <= 60_000
    for answer in ("n\n", "", None):
        left = await small("unlock", "cron:nightly", answer=answer)
        assert left.code == 1
        assert "[y/N]" in left.err and "--yes" in left.err
        assert redis_server.cli("EXISTS", "cron:nightly") == "1"
    freed = await small("unlock", "cron:nightly", answer="y\n")
    assert (freed.code, freed.out) == (0, "cron:nightly is free.\n")
    again = await small("unlock", "cron:nightly", "--yes")
    assert (again.code, again.out) == (0, "cron:nightly was not locked.\n")
    bad = await small("unlock", "two words")
    assert bad.code == 2 and "'two words'" in bad.complaint


async def test_unlock_cancels_the_owners_run(large: Cli, redis_server: RedisServer) -> None:
    async with table_locked(large.variables["DATABASE_URL"]):
        owner = await large.start("run", "store-auto-close", SOLOCRON_LEASE="1")
        await until(lambda: locked(redis_server))
        assert (await large("unlock", "cron:store-auto-close", "--yes")).code == 0
        result = await finished(owner)  # the table is still locked: only the lock can have ended it
    assert result.code == 1
    assert "lost" in result.complaint


async def test_commands_without_redis_say_so_in_one_line(small: Cli) -> None:
    for args in (("locks",), ("locks", "--json"), ("unlock", "cron:a", "--yes")):
        result = await small(*args, REDIS_URL="redis://127.0.0.1:1/0")
        assert (result.code, result.out) == (3, "")
        assert len(result.err.splitlines()) == 1 and "127.0.0.1:1" in result.complaint


# -- token, serve --------------------------------------------------------------------------


async def test_a_token_works_against_the_served_api(small: Cli) -> None:
    small.variables |= {"SOLOCRON_AUTH_SECRET": SECRET, "SOLOCRON_PORT": "0"}
    server = await small.start("serve")
    port = await listening(server)
    tokens = {
        "writer": await small("token", "--stores", "*", "--scope", "stores:write"),
        "reader": await small("token", "--stores", "7, 8"),
    }
    store = {"name": "Mitte", "timezone": "UTC", "hours": "24/7"}
    expected = {("writer", "PUT", "7"): 201, ("reader", "GET", "7"): 200,
                ("reader", "PUT", "7"): 403, ("reader", "GET", "9"): 403,
                ("", "GET", "7"): 401}  # fmt: skip
    async with aiohttp.ClientSession() as http:
        for (who, method, store_id), status in expected.items():
            bearer = f"Bearer {tokens[who].out.strip()}" if who else ""
            async with http.request(
                method, f"http://127.0.0.1:{port}/api/v1/stores/{store_id}",
                json=store if method == "PUT" else None, headers={"Authorization": bearer},
            ) as response:  # fmt: skip
                assert response.status == status, (who, method, store_id)
    server.send_signal(signal.SIGTERM)
    assert (await finished(server)).code == 0


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--stores", "*", "--scope", "root"), "'root'"),
        (("--stores", "*", "--scope", ""), "--scope is empty"),
        (("--stores", ""), "--stores is empty"),
        ((), "--stores is empty"),
        (("--scope", "metrics:read stores:write"), "--stores is empty"),
        (("--stores", "", "--scope", "jobs:run"), "--stores is empty"),
        (("--stores", "7,a b"), "'a b'"),
        (("--stores", "*,7"), "'*'"),
    ],
)
async def test_a_token_that_makes_no_sense(small: Cli, args: tuple[str, ...], named: str) -> None:
    result = await small("token", *args, SOLOCRON_AUTH_SECRET=SECRET)
    assert (result.code, result.out) == (2, "")
    assert named in result.complaint


async def test_an_operators_token_needs_no_stores(small: Cli) -> None:
    for scope in ("jobs:run metrics:read", "admin"):
        text = (await small("token", "--scope", scope, SOLOCRON_AUTH_SECRET=SECRET)).out.strip()
        principal = Authenticator(clock=SystemClock(), secret=SECRET).authenticate(text)
        assert all(map(principal.may, scope.split())) and not principal.sees("1")


async def test_no_token_without_a_secret(small: Cli) -> None:
    result = await small("token", "--stores", "*")
    assert result.code == 2
    assert "SOLOCRON_AUTH_SECRET" in result.complaint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_drains_and_ends_with_0(cli: Cli, number: signal.Signals) -> None:
    server = await cli.start("serve", SOLOCRON_PORT="0", SOLOCRON_LOG_FORMAT="json")
    port = await listening(server)
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/healthz") as response,
    ):
        assert response.status == 200
    server.send_signal(number)
    result = await finished(server)
    assert result.code == 0
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert {line["level"] for line in lines} <= {"info", "warning"}
    assert lines[-1]["message"] == "stopped"


async def test_a_second_signal_stops_at_once(large: Cli, redis_server: RedisServer) -> None:
    async with table_locked(large.variables["DATABASE_URL"]):
        server = await large.start(
            "serve", SOLOCRON_PORT="0", SOLOCRON_GRACE="600",
            SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE="* * * * * *",
        )  # fmt: skip
        await until(lambda: locked(redis_server))
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None
        async with asyncio.timeout(10):
            while b"SIGTERM: stopping" not in await server.stderr.readline():
                pass
        assert server.returncode is None  # it waits for the job
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert (await finished(server)).code == 130
    assert redis_server.cli("KEYS", "cron:*") == ""


async def test_serve_where_it_cannot(small: Cli) -> None:
    taken = await small.start("serve", SOLOCRON_PORT="0")
    port = await listening(taken)
    busy = await small("serve", SOLOCRON_PORT=str(port))
    assert busy.code == 2
    assert f"127.0.0.1:{port}" in busy.complaint and "SOLOCRON_PORT" in busy.complaint
    taken.send_signal(signal.SIGTERM)
    assert (await finished(taken)).code == 0
    open_door = await small("serve", SOLOCRON_HOST="0.0.0.0", SOLOCRON_PORT="0")
    assert open_door.code == 2
    assert "'0.0.0.0'" in open_door.complaint and "SOLOCRON_AUTH_SECRET" in open_door.complaint


# -- stores --------------------------------------------------------------------------------


async def test_stores_from_csv_and_json(cli: Cli) -> None:
    await cli("migrate")
    imported = await cli("stores", "import", written(cli, GOOD))
    assert (imported.code, imported.err) == (0, "")  # no progress bar in a pipe
    assert imported.out == "2 rows read, 2 imported, 0 bad.\n"
    rows = [{"id": "3", "name": "C", "timezone": "UTC", "hours": "24/7"}]
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", json.dumps(rows[0]))):
        again = await cli("stores", "import", written(cli, content, name))
        assert (again.code, again.out) == (0, "1 rows read, 1 imported, 0 bad.\n")
    assert await ids(cli) == ["1", "2", "3"]
    page = await cli("stores", "list", "--after", "1", "--limit", "1")
    assert "Süd" in page.out and "Mitte" not in page.out and "yes" in page.out
    poor = await cli("stores", "list", PYTHONIOENCODING="ascii")
    assert (poor.code, poor.err) == (0, "") and "S\\xfcd" in poor.out


async def test_bad_rows_are_told_one_by_one_and_stop_the_import(cli: Cli) -> None:
    await cli("migrate")
    bad = GOOD + "x y,A,UTC,24/7,\n4,B,Mars/Base,24/7,\n5,C,UTC,sometimes,\n6,D\n"
    file = written(cli, bad)
    stopped = await cli("stores", "import", file)
    assert stopped.code == 1
    told = stopped.err.splitlines()
    assert [line.split(": ")[:2] for line in told[:4]] == [
        ["line 4", "id"], ["line 5", "timezone"], ["line 6", "hours"],
        ["line 7", "2 cells, but the header names 5"],
    ]  # fmt: skip
    assert "'Mars/Base'" in told[1] and "'sometimes'" in told[2]
    assert "--skip-bad" in told[4] and len(told) == 5
    assert stopped.out == "6 rows read, 0 imported, 4 bad.\n"
    assert await ids(cli) == []
    skipped = await cli("stores", "import", "--skip-bad", file)
    assert (skipped.code, skipped.out) == (0, "6 rows read, 2 imported, 4 bad.\n")
    assert await ids(cli) == ["1", "2"]


async def test_a_file_that_is_none(small: Cli) -> None:
    (small.folder / "folder").mkdir()
    for name, content in (("none.csv", None), ("folder", None), ("empty.csv", ""),
                          ("binary.csv", HEADER + "\udcff"),
                          ("half.json", '[{"id": "1"')):  # fmt: skip
        if content is not None:
            data = content.encode(errors="surrogateescape")
            (small.folder / name).write_bytes(data)
        result = await small("stores", "import", name)
        assert (result.code, result.out) == (2, ""), result
        assert f"'{name}'" in result.complaint


def many(cli: Cli, rows: int) -> str:
    with (cli.folder / "many.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "timezone", "hours"])
        writer.writerows([str(n), f"store {n}", "UTC", "24/7"] for n in range(rows))
    return "many.csv"


async def test_an_interrupted_import_leaves_whole_batches(cli: Cli) -> None:
    await cli("migrate")
    url, rows = cli.variables["DATABASE_URL"], 40_000
    process = await cli.start("stores", "import", many(cli, rows))

    async def begun() -> bool:
        return await count(url) > 0

    await until(begun)
    process.send_signal(signal.SIGINT)
    assert (await finished(process)).code == 130
    left = await count(url)
    assert 0 < left < rows and left % 500 == 0
    rest = await cli("stores", "import", "many.csv")
    assert rest.code == 0 and await count(url) == rows


async def test_a_terminal_shows_progress(small: Cli) -> None:
    leader, follower = pty.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(leader, lambda: shown.extend(os.read(leader, 65536)))
    process = await small.start(
        "stores", "import", many(small, 5_000), stderr=follower, TERM="xterm"
    )
    result = await finished(process)
    loop.remove_reader(leader)
    os.close(leader)
    os.close(follower)
    assert (result.code, result.out) == (0, "5000 rows read, 5000 imported, 0 bad.\n")
    assert b"importing" in shown and b"%" in shown


async def test_a_reader_that_goes_away_is_no_error(small: Cli) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = await small.start("jobs", stdout=writing)
    os.close(writing)
    _, err = await process.communicate()
    assert b"Traceback" not in err


# -- settings ------------------------------------------------------------------------------

WRONG: list[tuple[str, str, str, str]] = [
    # variable, value, what must be told of it, the remedy
    ("SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE", "61 * * * *", "'61 * * * *'", "0 0,6 * * *"),
    ("SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE", "@daily", "'@daily'", "0 0,6 * * *"),
    ("SOLOCRON_STORE_AUTO_CLOSE_TTL", "0", "'0'", "from 1 to 604800"),
    ("SOLOCRON_STORE_AUTO_CLOSE_TTL", "-5", "'-5'", "from 1 to 604800"),
    ("SOLOCRON_STORE_OPEN_REMINDER_TTL", "1e300", "'1e300'", "from 1 to 604800"),
    ("SOLOCRON_STORE_OPEN_REMINDER_TTL", "nan", "'nan'", "from 1 to 604800"),
    ("SOLOCRON_HISTORY", "60", "'60'", "from 3600 to 3155760000"),
    ("SOLOCRON_NOTIFY_ATTEMPTS", "0", "'0'", "from 1 to 100"),
    ("REDIS_URL", "http://127.0.0.1", "REDIS_URL", "redis://host:6379/0"),
    ("REDIS_PORT", "70000", "'70000'", "from 1 to 65535"),
    ("DATABASE_URL", "mysql://localhost/x", "'mysql'", "postgresql://user@host:5432/name"),
    ("DATABASE_URL", "sqlite://", "DATABASE_URL", "sqlite:///file.db"),
    ("SOLOCRON_PORT", "http", "'http'", "from 0 to 65535"),
    ("SOLOCRON_PORT", "tcp://10.0.0.1:80", "'tcp://10.0.0.1:80'", "enableServiceLinks: false"),
    ("SOLOCRON_TIMEZONE", "Mars/Base", "'Mars/Base'", "Europe/Berlin"),
    ("SOLOCRON_ENVIRONMENT", "My Env", "'My Env'", "a-z, 0-9"),
    ("SOLOCRON_PRT", "1", "SOLOCRON_PRT", "SOLOCRON_PORT"),
]


@pytest.mark.parametrize(("name", "value", "told", "remedy"), WRONG)
async def test_a_wrong_setting_is_one_line_with_its_remedy(
    small: Cli, name: str, value: str, told: str, remedy: str
) -> None:
    result = await small("jobs", **{name: value})
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert name in result.complaint and told in result.complaint
    assert remedy in result.complaint


@pytest.mark.parametrize("command", ["jobs", "serve"])
async def test_all_that_is_wrong_is_told_at_once(small: Cli, command: str) -> None:
    wrong = {name: value for name, value, *_ in WRONG}
    result = await small(command, **wrong)
    assert result.code == 2
    lines = result.err.splitlines()
    assert len(lines) == len(wrong)
    for name in wrong:
        assert any(line.startswith(f"solocron: {name}") for line in lines), name


MARKER = "hunter2-do-not-show"
LEAKY: list[dict[str, Any]] = [
    {"REDIS_URL": f"redis://:{MARKER}@127.0.0.1:1/0"},
    {"REDIS_URL": f"redis://:{MARKER}@127.0.0.1:port/0"},
    {"REDIS_URL": f"redis://:{MARKER}/x@127.0.0.1:1/0"},
    {"REDIS_URL": f"redis://:12#{MARKER}@127.0.0.1:1/0"},
    {"REDIS_URL": f"redis://127.0.0.1:1/0?password={MARKER}&nonsense=1"},
    {"REDIS_URL": MARKER},
    {"REDIS_HOST": f"redis://:{MARKER}@127.0.0.1", "REDIS_URL": ""},
    {"REDIS_PASSWORD": MARKER, "REDIS_URL": "", "REDIS_PORT": "1"},
    {"DATABASE_URL": f"postgresql://u:{MARKER}@127.0.0.1:1/x"},
    {"DATABASE_URL": f"postgresql://u:{MARKER}@127.0.0.1:port/x"},
    {"DATABASE_URL": f"postgresql://u@127.0.0.1:1/x?password={MARKER}"},
    {"DATABASE_URL": f"mysql://u:{MARKER}@127.0.0.1/x"},
    {"DATABASE_URL": f"mysql://127.0.0.1/x?password={MARKER}"},
    {"DATABASE_URL": MARKER},
    {"SOLOCRON_AUTH_SECRET": MARKER},
    {"SOLOCRON_AUTH_SECRET": "\udcff" + MARKER},
    {"SOLOCRON_AUTH_SECRET": MARKER * 1000},
    {"SOLOCRON_AUTH_SECERT": MARKER},
]


@pytest.mark.parametrize("variables", LEAKY, ids=lambda each: next(iter(each)))
async def test_no_secret_is_ever_shown(small: Cli, variables: dict[str, str]) -> None:
    commands = (("status", "--json"), ("run", "store-auto-close"))
    results = await asyncio.gather(
        *(small(*each, SOLOCRON_LOG_LEVEL="debug", **variables) for each in commands)
    )
    for result in results:
        assert MARKER not in result.out + result.err
    assert any(result.code for result in results)


async def test_a_server_that_refuses_the_password_shows_none(
    small: Cli, own_redis: RedisServer
) -> None:
    await small("migrate")
    own_redis.cli("CONFIG", "SET", "requirepass", "right")
    url = own_redis.url.replace("//", f"//:{MARKER}@")
    for args in (("locks",), ("status",)):
        result = await small(*args, REDIS_URL=url, SOLOCRON_LOG_LEVEL="debug")
        assert result.code == 3
        assert MARKER not in result.out + result.err
        assert "AuthenticationError" in result.complaint
