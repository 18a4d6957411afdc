"""Services that are started as processes, as their users would: the modules in `hosts`."""

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
from aiohttp import WSMsgType
from sqlalchemy import insert, select

from commands import APP, SETTING
from conftest import SECRET, RedisServer, free_port
from solocron.storage.engine import Database
from solocron.storage.tables import job_runs, stores
from workers import NEVER, effects, prepare, until

HOSTS = Path(__file__).parent / "hosts"
TOKEN = jwt.encode(
    {"aud": "solocron", "exp": 4_000_000_000, "stores": "*", "scope": "admin"}, SECRET
)
UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "PORT")


@dataclass(frozen=True)
class Kind:
    """How a host is started: Python's arguments, PORT for its port, which may be solocron's own.
    `leaves` is the close code of its clients, `ends` its exit code, both on SIGTERM."""

    args: tuple[str, ...]
    leaves: int = 1001
    ends: int = 0
    on_own_port: bool = False

    def command(self, port: int) -> list[str]:
        return [sys.executable, *(each.replace("PORT", str(port)) for each in self.args)]


class Host:
    """A started host, and the `own_port` that solocron has there, if it serves."""

    def __init__(
        self, kind: Kind, port: int, own_port: int, process: asyncio.subprocess.Process
    ) -> None:
        self.kind, self.port, self.own_port, self.process = kind, port, own_port, process

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


async def settings(redis: RedisServer, url: str) -> Mapping[str, str]:
    """The environment of a host whose database is new, with one closed store that should be
    open."""
    database = await prepare(url)
    async with database.begin() as connection:
        row = {"id": "44", "name": "Kiosk", "timezone": "UTC", "hours": "24/7", "updated_at": 0}
        await connection.execute(insert(stores).values(is_open=False, **row))
    await database.close()
    inherited = {key: value for key, value in os.environ.items() if not SETTING.match(key)}
    return {
        **inherited, "PYTHONPATH": os.pathsep.join((str(APP), str(HOSTS))),
        "REDIS_URL": redis.url, "DATABASE_URL": url,
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
    own = port if kind.on_own_port else free_port()
    process = await asyncio.create_subprocess_exec(
        *kind.command(port), cwd=HOSTS, env={**variables, "SOLOCRON_PORT": str(own)},
        start_new_session=True,
    )  # fmt: skip
    try:
        host = Host(kind, port, own, process)
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


async def written_by(url: str) -> list[int]:
    """The ticks of the hosts' own job, one for each time that it was done."""
    database = Database(url)
    try:
        return [tick for tick, _ in await effects(database)]
    finally:
        await database.close()


def on_board(redis: RedisServer) -> set[int]:
    """The processes that say they are up."""
    return {int(each.split(":")[1]) for each in redis.cli("HKEYS", "solocron:workers").split()}


async def nothing_left(redis: RedisServer, killed: int = 0) -> None:
    """No connection to Redis but redis-cli's, nobody on the board but so many who were killed."""
    assert len(redis.cli("CLIENT", "LIST").splitlines()) == 1
    assert len(on_board(redis)) <= killed
