"""`solocron doctor` on real deployments that are well, ill, or not there."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from test_deadletters import die, refused

from commands import Cli, listening
from conftest import RedisServer
from services import MailServer
from solocron.storage.engine import Database
from workers import until

README = Path(__file__).parents[2] / "README.md"
NOWHERE = "postgresql://u@127.0.0.1:1/none"


@pytest.fixture
async def cli(tmp_path: Path, own_redis: RedisServer, database_url: str) -> AsyncIterator[Cli]:
    """On both databases, migrated, with a Redis that keeps what it has."""
    own_redis.cli("CONFIG", "SET", "save", "3600 1")
    cli = Cli(tmp_path, {"REDIS_URL": own_redis.url, "DATABASE_URL": database_url})
    assert (await cli("migrate")).code == 0
    yield cli
    await cli.close()


async def examined(cli: Cli, **variables: str) -> tuple[int, dict[str, Any]]:
    result = await cli("doctor", "--json", **variables)
    return result.code, json.loads(result.out)


async def serve(cli: Cli, count: int, **variables: str) -> None:
    """Start servers, and wait until each is on the board."""
    for _ in range(count):
        await listening(await cli.start("serve", SOLOCRON_PORT="0", **variables))

    async def told() -> bool:
        _, found = await examined(cli)
        texts = " ".join(each["text"] for each in found["findings"])
        return "none is up" not in texts and (count == 1 or "only " not in texts)

    await until(told)


async def test_nothing_is_wrong_with_two_servers(cli: Cli) -> None:
    await serve(cli, 2)
    code, found = await examined(cli)
    assert (code, found["redis"], found["database"]) == (0, "up", "up"), found
    assert {each["severity"] for each in found["findings"]} <= {"note"}
    table = await cli("doctor")
    assert table.code == 0 and "redis: up   database: up" in table.out


async def test_a_server_that_went_without_a_word_is_exit_code_1_until_another_takes_its_place(
    cli: Cli,
) -> None:
    quick = {"SOLOCRON_SWEEP": "0.5"}
    await serve(cli, 1, **quick)
    victim = await cli.start("serve", SOLOCRON_PORT="0", **quick)
    await listening(victim)
    silent = []

    async def told() -> bool:
        code, found = await examined(cli, **quick)
        silent[:] = [each for each in found["findings"] if "silent since" in each["text"]]
        severities = {each["severity"] for each in found["findings"]}
        return code == int("warning" in severities) and bool(silent)

    victim.kill()
    await until(told)
    assert [each["severity"] for each in silent] == ["warning"]
    assert "start it, or another in its place" in silent[0]["remedy"]
    await listening(await cli.start("serve", SOLOCRON_PORT="0", **quick))

    async def replaced() -> bool:
        return await told() and [each["severity"] for each in silent] == ["note"]

    await until(replaced)


async def test_a_dead_letter_is_exit_code_1_until_it_is_sent_again(
    cli: Cli, mail: MailServer
) -> None:
    async def letters() -> tuple[int, list[Any]]:
        code, found = await examined(cli)
        return code, [each for each in found["findings"] if each["about"] == "deliveries"]

    await serve(cli, 2)
    assert (await letters())[1] == []
    mail.verdict = refused
    database = Database(cli.variables["DATABASE_URL"])
    (url,) = await die(database, mail, "a")
    await database.close()
    code, (letter,) = await letters()
    assert (code, letter["severity"]) == (1, "warning")
    assert letter["text"].startswith("1 ") and "solocron deadletters --retry" in letter["remedy"]
    assert (await cli("deadletters", "--retry", SOLOCRON_NOTIFY_URLS=url)).code == 0
    assert (await letters())[1] == []


async def test_what_needs_attention_is_exit_code_1(cli: Cli, own_redis: RedisServer) -> None:
    own_redis.cli("CONFIG", "SET", "maxmemory", "100mb")
    own_redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    await serve(cli, 1, SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE="1 0 * * *")
    code, found = await examined(cli, SOLOCRON_CATCH_UP="10", SOLOCRON_TIMEZONE="Africa/Cairo")
    assert code == 1
    by = {(each["about"], each["severity"]): each for each in found["findings"]}
    assert "allkeys-lru" in by["redis", "warning"]["text"]
    assert "noeviction" in by["redis", "warning"]["remedy"]
    assert "'1 0 * * * UTC'" in by["store-auto-close", "error"]["text"]
    assert "does not exist in Africa/Cairo" in by["store-auto-close", "note"]["text"]
    assert "SOLOCRON_CATCH_UP (10 s)" in by["settings", "warning"]["text"]
    order = [each["severity"] for each in found["findings"]]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    table = await cli("doctor")
    assert table.code == 1 and "CONFIG SET maxmemory-policy noeviction" in table.out


async def test_the_durations_of_the_runs_are_looked_at(cli: Cli) -> None:
    database = Database(cli.variables["DATABASE_URL"])
    insert = text(
        "INSERT INTO job_runs (job, tick, attempt, state, owner, origin, started_at, lease_until, "
        "duration_ms) VALUES ('store-auto-close', :tick, 1, 'succeeded', 'o', 'schedule', 0, 0, "
        "900000)"
    )
    async with database.begin() as connection:
        await connection.execute(insert, [{"tick": tick} for tick in range(1, 21)])
    await database.close()
    _, found = await examined(cli)
    texts = [each["text"] for each in found["findings"] if each["about"] == "store-auto-close"]
    assert any("its TTL is 600 s" in each and "900.0 s" in each for each in texts)
    assert any("SOLOCRON_GRACE is 20 s" in each for each in texts)


async def test_what_is_not_there_is_exit_code_3(cli: Cli, own_redis: RedisServer) -> None:
    code, found = await examined(cli, DATABASE_URL=NOWHERE)
    assert (code, found["redis"], found["database"]) == (3, "up", "down")
    assert NOWHERE in found["findings"][0]["text"]
    own_redis.stop()
    code, found = await examined(cli)
    assert (code, found["redis"], found["database"]) == (3, "down", "up")
    assert found["findings"][0]["about"] == "redis"
    both = await cli("doctor", DATABASE_URL=NOWHERE)
    assert both.code == 3 and "redis: down   database: down" in both.out


async def test_a_database_that_is_not_migrated(cli: Cli, tmp_path: Path) -> None:
    code, found = await examined(cli, DATABASE_URL=f"sqlite:///{tmp_path}/new.db")
    assert code == 3
    assert any(each["remedy"] == "solocron migrate" for each in found["findings"])


async def test_a_user_who_may_not_ask_redis_is_told_what_is_not_known(
    cli: Cli, own_redis: RedisServer
) -> None:
    rule = re.search(r"^ACL SETUSER solocron (.*)$", README.read_text(), re.MULTILINE)
    assert rule is not None
    words = rule[1].replace(">PASSWORD", ">pass-word").split()
    assert own_redis.cli("ACL", "SETUSER", "solocron", *words) == "OK"
    url = own_redis.url.replace("redis://", "redis://solocron:pass-word@")
    _, found = await examined(cli, REDIS_URL=url)
    assert found["redis"] == "up"
    (note,) = [each for each in found["findings"] if "not known" in each["text"]]
    assert note["severity"] == "note" and "+info" in note["remedy"]
    own_redis.cli("ACL", "SETUSER", "solocron", "+info")
    own_redis.cli("CONFIG", "SET", "maxmemory", "100mb")
    own_redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    _, found = await examined(cli, REDIS_URL=url)  # without CONFIG
    assert any("allkeys-lru" in each["text"] for each in found["findings"])


async def test_a_redis_that_was_just_started_is_not_said_to_have_no_server(
    cli: Cli, own_redis: RedisServer
) -> None:
    own_redis.stop()
    own_redis.start()
    _, found = await examined(cli, SOLOCRON_SWEEP="60")
    (said,) = [each for each in found["findings"] if each["about"] == "servers"]
    assert said["severity"] == "warning" and "knows no server yet" in said["text"]
    assert re.fullmatch(r"ask again in \d+ s", said["remedy"])


async def test_an_sqlite_file_that_somebody_keeps_locked(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    file = tmp_path / "locked.db"
    cli = Cli(tmp_path, {"REDIS_URL": own_redis.url, "DATABASE_URL": f"sqlite:///{file}"})
    assert (await cli("migrate")).code == 0
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        code, found = await examined(cli)
        assert (code, found["database"]) == (1, "up")
        (said,) = [each for each in found["findings"] if "nothing can be written" in each["text"]]
        assert said["severity"] == "error" and "is locked" in said["text"]
        assert "fuser" in said["remedy"]
        other.execute("ROLLBACK")
    _, found = await examined(cli)
    assert not [each for each in found["findings"] if "written" in each["text"]]
    await cli.close()
