"""The runbook is true: its commands print what it says, in the states it describes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import pytest

from commands import CODE, Cli
from conftest import RedisServer, redis_binary
from deployment import DEPLOY, ROOT
from solocron.cli.commands import _SKIPPED
from solocron.cron.explain import State
from workers import table_locked, until

RUNBOOK = (DEPLOY / "README.md").read_text()
LOCK = "cron:store-auto-close"
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z [A-Z]+ .*\n", re.MULTILINE)
BY = re.compile(r"by \S+@\S+")
OWNER = re.compile(r"\S+:\d+:[0-9a-f]{32}:-?\d+")


def section(heading: str) -> list[tuple[str, str]]:
    """(commands, what the runbook says they print) in the section."""
    text = RUNBOOK.split(f"\n### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]
    found = re.findall(r"^```sh\n(.*?)^```\n\n^```text\n(.*?)^```$", text, re.M | re.DOTALL)
    assert len(found) == text.count("```sh\n")
    return found


def essence(text: str) -> str:
    """What was printed without log lines, and what differs from time to time."""
    text = BY.sub("by SOMEBODY", OWNER.sub("OWNER", LOG_LINE.sub("", text)))
    text = re.sub(r"[\u2500-\u257f]", " ", text)
    return re.sub(r"\s+", " ", re.sub(r"\d+", "0", text)).strip()


class Shell:
    """Runs the runbook's commands where a worker's settings are."""

    def __init__(self, cli: Cli, bin: Path) -> None:
        self._cli = cli
        self._path = f"{bin}{os.pathsep}{os.environ['PATH']}"
        for name, command in (
            ("solocron", f"exec {sys.executable} -c '{CODE}' \"$@\""),
            ("redis-cli", f'exec {redis_binary("redis-cli")} "$@"'),
        ):
            (bin / name).write_text(f"#!/bin/sh\n{command}\n")
            (bin / name).chmod(0o755)

    async def __call__(self, commands: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", commands, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, cwd=self._cli.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "app"), **self._cli.variables,
                 "PATH": self._path},
        )  # fmt: skip
        return (await process.communicate())[0].decode()

    async def check(self, heading: str) -> None:
        for commands, told in section(heading):
            printed = await self(commands)
            assert essence(printed) == essence(told), printed


@pytest.fixture
async def cli(tmp_path: Path, own_redis: RedisServer, postgres_url: str) -> AsyncIterator[Cli]:
    cli = Cli(tmp_path, {
        "REDIS_URL": own_redis.url, "DATABASE_URL": postgres_url, "SOLOCRON_LEASE": "2",
    })  # fmt: skip
    assert (await cli("migrate")).code == 0
    yield cli
    await cli.close()


@pytest.fixture
def shell(cli: Cli, tmp_path: Path) -> Shell:
    (tmp_path / "bin").mkdir()
    return Shell(cli, tmp_path / "bin")


@asynccontextmanager
async def running(cli: Cli, redis: RedisServer) -> AsyncIterator[int]:
    """The job store-auto-close is in the middle of a run, for as long as this lasts; the process
    that runs it."""
    async with table_locked(cli.variables["DATABASE_URL"]):
        process = await cli.start("run", "store-auto-close")

        async def locked() -> bool:
            return redis.cli("EXISTS", LOCK) == "1"

        await until(locked)
        try:
            yield process.pid
        finally:
            process.kill()
            await process.communicate()


async def test_a_lock_never_expires(cli: Cli, shell: Shell, own_redis: RedisServer) -> None:
    async with running(cli, own_redis):
        pass

    async def silent() -> bool:
        return own_redis.cli("EXISTS", f"{{{LOCK}}}:alive") == "0"

    await until(silent)
    await shell.check("1. Lock never expires")
    assert own_redis.cli("EXISTS", LOCK) == "0"


async def test_redis_connection_issues(cli: Cli, shell: Shell, own_redis: RedisServer) -> None:
    own_redis.stop()
    await shell.check("2. Redis connection issues")
    assert (await cli("status")).code == 3


@pytest.mark.alone
async def test_jobs_not_running(cli: Cli, shell: Shell, own_redis: RedisServer) -> None:
    cli.variables |= {
        "SOLOCRON_CATCH_UP": "604800",  # whatever time it is, the newest tick is open
        "SOLOCRON_SWEEP": "0.3",
    }

    async def is_old_enough() -> bool:  # a Redis that was just started knows no server yet
        info = own_redis.cli("INFO", "server")
        return int(re.findall(r"uptime_in_seconds:(\d+)", info)[0]) > 3

    await until(is_old_enough)
    async with running(cli, own_redis):
        await shell.check("3. Jobs not running")


async def test_debug_commands(cli: Cli, shell: Shell, own_redis: RedisServer) -> None:
    async with running(cli, own_redis):
        await shell.check("Debug commands")
        assert own_redis.cli("EXISTS", LOCK) == "0"


def test_the_originals_sections_and_commands_are_there() -> None:
    for heading in ("1. Lock never expires", "2. Redis connection issues", "3. Jobs not running"):
        assert section(heading)
    for command in ("keys", "ttl", "del"):
        assert re.search(rf'^redis-cli -u "\$REDIS_URL" {command} "cron:', RUNBOOK, re.MULTILINE)


def test_every_reason_to_skip_and_every_state_of_a_tick_is_explained() -> None:
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", RUNBOOK, re.MULTILINE)
    told = [word for row in rows for word in re.findall("[a-z-]+", row)]
    reasons = {*_SKIPPED, "overlap", "missed", "clock-skew"}
    assert sorted(told) == sorted([*reasons, *get_args(State)])


def test_every_file_and_heading_that_is_linked_exists() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-")
        for each in re.findall(r"^#+ (.*)$", RUNBOOK, re.MULTILINE)
    }
    for target in re.findall(r"\]\(#([^)]*)\)", RUNBOOK):
        assert target in headings, target
    for name in re.findall(r"`((?:kubernetes|prometheus|grafana)/[\w./-]+)`", RUNBOOK):
        assert (DEPLOY / name).exists(), name
