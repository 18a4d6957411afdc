"""Each host starts for real, serves HTTP and WebSockets, runs its own job, and goes in peace."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Any

import pytest

from clients import connected, subscribe
from conftest import RedisServer
from hosting import TOKEN, UVICORN, Kind, family, nothing_left, runs, settings, started, written_by
from solocron.client import Client
from solocron.clock import SystemClock
from workers import table_locked, until

# uvicorn ends by the signal that it was sent.
HOSTS = {
    "aiohttp": Kind(("aiohttp_host.py", "PORT")),
    "fastapi": Kind(("fastapi_host.py", "PORT"), ends=-signal.SIGTERM),
    "fastapi-by-uvicorn": Kind(
        (*UVICORN, "fastapi_host:app"), leaves=1012, ends=-signal.SIGTERM
    ),
    "starlette": Kind(
        (*UVICORN, "starlette_host:app"), leaves=1012, ends=-signal.SIGTERM
    ),
    "quart": Kind(("-m", "hypercorn", "--bind", "127.0.0.1:PORT", "quart_host:app")),
    "plain": Kind(("plain_host.py",), on_own_port=True),
}  # fmt: skip


@pytest.fixture
async def variables(redis_server: RedisServer, postgres_url: str) -> Mapping[str, str]:
    return await settings(redis_server, postgres_url)


async def stuck(url: str) -> Any:
    """The run that has been under way for half a second; there is to be one."""
    found: list[Any] = []

    async def one() -> bool:
        began = SystemClock().now_ms() - 500
        found[:] = [
            each for each in await runs(url) if each.state == "running" and each.started_at < began
        ]
        return bool(found)

    await until(one, 20)
    return found[-1]


@pytest.mark.parametrize("kind", HOSTS.values(), ids=HOSTS)
async def test_a_host_serves_both_and_hands_over_what_it_runs_when_it_goes(
    kind: Kind, variables: Mapping[str, str], redis_server: RedisServer
) -> None:
    url = variables["DATABASE_URL"]
    async with started(kind, variables) as one, started(kind, variables) as other:
        async with Client(f"ws://127.0.0.1:{one.port}/ws", {"44": 0}, token=TOKEN) as events:
            if not kind.on_own_port:
                assert await other.post("/remind") == {"state": "succeeded", "reminded": 1}
            async with asyncio.timeout(15):
                event = await anext(events)
            assert (event.type, event.store_id, event.seq) == ("store.open-reminder", "44", 1)
        async with connected(one.port, TOKEN) as first, connected(other.port, TOKEN) as second:
            sockets = {one: first, other: second}
            for ws in sockets.values():
                await subscribe(ws, {"44": None})
            async with table_locked(url):
                run = await stuck(url)
                pids = family(int(run.owner.rpartition(":")[2]))
                (owner,) = [each for each in (one, other) if each.process.pid in pids]
                assert await owner.stop(sockets[owner]) == (kind.ends, kind.leaves)
            (left,) = {one, other} - {owner}

            async def is_taken_over() -> bool:
                (row,) = [each for each in await runs(url) if each.tick == run.tick]
                return bool(row.state == "succeeded" and row.attempt == 2)

            await until(is_taken_over, 15)
            assert await left.stop(sockets[left]) == (kind.ends, kind.leaves)
    await nothing_left(redis_server)
    written = await written_by(url)
    assert len(written) == len(set(written)) and run.tick in written
