"""Each host starts for real, serves HTTP and WebSockets, runs its own job, and goes in peace."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import WSMsgType
from sqlalchemy import insert, select

from clients import connected, subscribe
from commands import APP, SETTING
from conftest import SECRET, RedisServer, free_port
from solocron.client import Client
from solocron.clock import SystemClock
from solocron.storage.engine import Database
from solocron.storage.tables import job_runs, stores
from workers import NEVER, effects, prepare, table_locked, until

HERE = Path(__file__).parent
TOKEN = jwt.encode(
    {"aud": "solocron", "exp": 4_000_000_000, "stores": "*", "scope": "admin"}, SECRET
)
UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port")
GUNICORN = ("-W", "ignore", "-m", "gunicorn", "--no-control-socket", "--bind")


@dataclass(frozen=True)
class Kind:
    """How a host is started: Python's arguments, its port among them, or solocron's own port.
    `leaves` is the close code of its clients, `ends` its exit code, both on SIGTERM."""

    args: tuple[str, ...]
    leaves: int = 1001
    ends: int = 0

    def command(self, port: int) -> list[str]:
        return [sys.executable, *(each.replace("PORT", str(port)) for each in self.args)]


# uvicorn ends by the signal that it was sent.
HOSTS = {
    "aiohttp": Kind(("aiohttp_host.py", "PORT")),
    "fastapi": Kind(("fastapi_host.py", "PORT"), ends=-signal.SIGTERM),
    "fastapi-by-uvicorn": Kind(
        (*UVICORN, "PORT", "fastapi_host:app"), leaves=1012, ends=-signal.SIGTERM
    ),
    "starlette": Kind(
        (*UVICORN, "PORT", "starlette_host:app"), leaves=1012, ends=-signal.SIGTERM
    ),
    "quart": Kind(("-m", "hypercorn", "--bind", "127.0.0.1:PORT", "quart_host:app")),
    "plain": Kind(("plain_host.py",)),
}  # fmt: skip


class Host:
    """A started host."""

    def __init__(self, kind: Kind, port: int, process: asyncio.subprocess.Process) -> None:
        self.kind, self.port, self.process = kind, port, process

    async def answers(self) -> bool:
        """Whether it takes connections."""
        assert self.process.returncode is None
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def stop(self, ws: aiohttp.ClientWebSocketResponse) -> tuple[int, int | None]:
        """Its exit code on SIGTERM, and the close code of one of its clients."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while (await ws.receive()).type is WSMsgType.TEXT:
                pass
            return await self.process.wait(), ws.close_code

    async def post(self, path: str) -> Any:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()


@pytest.fixture
async def variables(redis_server: RedisServer, postgres_url: str) -> Mapping[str, str]:
    """The settings of a host on PostgreSQL, with one closed store that should be open."""
    database = await prepare(postgres_url)
    async with database.begin() as connection:
        row = {"id": "44", "name": "Kiosk", "timezone": "UTC", "hours": "24/7", "updated_at": 0}
        await connection.execute(insert(stores).values(is_open=False, **row))
    await database.close()
    inherited = {key: value for key, value in os.environ.items() if not SETTING.match(key)}
    return {
        **inherited, "PYTHONPATH": os.pathsep.join((str(APP), str(HERE))),
        "REDIS_URL": redis_server.url, "DATABASE_URL": postgres_url,
        "SOLOCRON_AUTH_SECRET": SECRET, "SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE": NEVER,
        "SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE": NEVER, "SOLOCRON_GRACE": "1",
        "SOLOCRON_SWEEP": "0.5", "SOLOCRON_LEASE": "3",
    }  # fmt: skip


def family(pid: int) -> tuple[int, int]:
    """A process and its parent: a host's own is either."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return pid, int(stat.rpartition(")")[2].split()[1])


@asynccontextmanager
async def started(kind: Kind, variables: Mapping[str, str]) -> AsyncIterator[Host]:
    """A host that takes connections; at the end its processes are killed, if any are left."""
    port = free_port()
    own = port if kind is HOSTS["plain"] else 0
    process = await asyncio.create_subprocess_exec(
        *kind.command(port), cwd=HERE, env={**variables, "SOLOCRON_PORT": str(own)},
        start_new_session=True,
    )  # fmt: skip
    try:
        host = Host(kind, port, process)
        await until(host.answers, 30)
        yield host
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def runs(url: str) -> list[Any]:
    """The rows of the hosts' own job, oldest first."""
    database = Database(url)
    try:
        async with database.connect() as connection:
            rows = select(job_runs).where(job_runs.c.job == "count-stores")
            return list(await connection.execute(rows.order_by(job_runs.c.tick)))
    finally:
        await database.close()


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
            if kind is not HOSTS["plain"]:
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


async def written_by(url: str) -> list[int]:
    """The ticks of the hosts' own job, one for each time that it was done."""
    database = Database(url)
    try:
        return [tick for tick, _ in await effects(database)]
    finally:
        await database.close()


async def nothing_left(redis: RedisServer) -> None:
    """No connection to Redis but redis-cli's, no lock that is held, nobody on the board."""
    assert len(redis.cli("CLIENT", "LIST").splitlines()) == 1
    assert redis.cli("HLEN", "solocron:workers") == "0"
