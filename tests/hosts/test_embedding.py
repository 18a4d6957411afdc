"""What a service does to the process it is embedded in: nothing, and nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conftest import RedisServer
from solocron.errors import ConfigError
from solocron.service import Solocron
from solocron.settings import load
from workers import NEVER

TURNS = [*range(8), 16, 32, 64]


@pytest.fixture
async def cron(environment: pytest.MonkeyPatch) -> AsyncIterator[Solocron]:
    for name in ("AUTO_CLOSE", "OPEN_REMINDER"):
        environment.setenv(f"SOLOCRON_STORE_{name}_SCHEDULE", NEVER)
    yield Solocron(load())


def of_the_host() -> dict[str, Any]:
    """What belongs to the host: its loop, its signals, its hooks."""
    loop = asyncio.get_running_loop()
    return {
        "signals": {each: signal.getsignal(each) for each in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(signal.set_wakeup_fd(-1)),
        "loop": loop,
        "policy": asyncio.get_event_loop_policy(),
        "exceptions": loop.get_exception_handler(),
        "tasks": loop.get_task_factory(),
        "debug": loop.get_debug(),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
    }


def held() -> dict[str, Any]:
    """What a process can have left: tasks, files and sockets, threads."""
    gc.collect()  # the cursor of a cancelled statement holds its closed file until then
    files = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            files.append(os.readlink(each))
        except OSError:  # the folder's own
            continue
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": sorted(files),
        "threads": len([each for each in threading.enumerate() if "asyncio" not in each.name]),
    }


async def held_by_the_host() -> dict[str, Any]:
    """What is held once the database of a service before has closed its last file and thread."""
    async with asyncio.timeout(5):
        while (now := held())["threads"] > 1 or any(".db" in each for each in now["files"]):
            await asyncio.sleep(0.01)
    return now


async def all_given_back(before: dict[str, Any], redis: RedisServer) -> None:
    """Wait until nothing is held that was not before, here or at Redis."""
    links, deadline = 2, asyncio.get_running_loop().time() + 5
    while asyncio.get_running_loop().time() < deadline and (held() != before or links > 1):
        await asyncio.sleep(0.02)
        links = len(redis.cli("CLIENT", "LIST").splitlines())
    assert (held(), links) == (before, 1)


def keys(redis: RedisServer) -> set[str]:
    """All but what is meant to outlive a server: the schedules, what was told of ticks, and until
    when a job's ticks were looked after."""
    meant = ("schedule", ":tick:", ":looked")
    return {each for each in redis.cli("KEYS", "*").split() if not any(x in each for x in meant)}


async def lived(cron: Solocron) -> None:
    async with cron.lifespan(object()):
        async with asyncio.timeout(10):
            while not cron.parts.fanout.is_up or not cron.parts.board.presence():
                await asyncio.sleep(0.01)
        await cron.parts.board.publish()


async def test_a_host_has_all_that_is_its_own_before_while_and_after(
    cron: Solocron, redis_server: RedisServer
) -> None:
    await lived(cron)  # what a library makes once for the process is made
    mine, before = of_the_host(), await held_by_the_host()
    for _ in range(2):
        async with cron.lifespan(object()):
            assert of_the_host() == mine
            assert held() != before
        assert of_the_host() == mine
        await all_given_back(before, redis_server)
    assert keys(redis_server) == set()


async def test_entered_twice_and_left_twice_it_is_one_service(
    cron: Solocron, redis_server: RedisServer
) -> None:
    await lived(cron)
    before = await held_by_the_host()
    async with cron.lifespan(object()), cron, cron.serving():
        await asyncio.gather(cron.start(), cron.start())
        assert (await cron.readiness())[1]["draining"] is False
    await asyncio.gather(cron.stop(), cron.stop())
    await all_given_back(before, redis_server)


@pytest.mark.parametrize("turns", TURNS)
async def test_a_lifespan_cancelled_anywhere_leaves_nothing(
    cron: Solocron, redis_server: RedisServer, turns: int
) -> None:
    await lived(cron)
    before = await held_by_the_host()
    living = asyncio.create_task(lived(cron))
    for _ in range(turns):
        await asyncio.sleep(0)
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    del living  # its traceback keeps the cursor of a cancelled statement, and that the closed file
    await all_given_back(before, redis_server)
    assert keys(redis_server) == set()


async def test_a_fork_of_the_process_that_made_it_is_refused(
    cron: Solocron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ConfigError, match="--preload"):
        await cron.start()
