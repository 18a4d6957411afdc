"""A service manager is told when the service is ready and when it stops, and hears nothing from a
process whose loop is blocked."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import zygote
from commands import APP, Cli, finished
from conftest import RedisServer, free_port

PERIOD_S = 0.5
BLOCK_S = 4.0
BLOCKING_HOST = f"""
import asyncio, time
from solocron import Solocron
from solocron.serving import serve_until_signalled

cron = Solocron.from_env()
blocks = [{BLOCK_S}]

@cron.job("* * * * * *")
async def blocking(run):
    if blocks:
        print("blocks", flush=True)
        time.sleep(blocks.pop())
        print("runs on", flush=True)

asyncio.run(serve_until_signalled(cron))
"""


class Manager:
    """Listens as systemd does; `address` is for NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        self._socket.setblocking(False)

    async def hear(self) -> list[str]:
        """The lines of the next message."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            return (await loop.sock_recv(self._socket, 4096)).decode().split("\n")

    def heard(self) -> int:
        """How many messages have come in the meantime; they are dropped."""
        count = 0
        while True:
            try:
                self._socket.recv(4096)
            except BlockingIOError:
                return count
            count += 1

    async def hears(self, line: str) -> list[str]:
        """The next message that has `line`, or begins with it."""
        while True:
            lines = await self.hear()
            if any(each.startswith(line) for each in lines):
                return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    manager = Manager(path if request.param == "path" else f"@{path}")
    yield manager
    manager.close()


@pytest.fixture
async def cli(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str, manager: Manager
) -> AsyncIterator[Cli]:
    """Commands in the environment that a service manager gives."""
    cli = Cli(tmp_path, {
        "REDIS_URL": redis_server.url, "DATABASE_URL": sqlite_url,
        "SOLOCRON_PORT": str(free_port()), "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": str(int(PERIOD_S * 1e6)),
    })  # fmt: skip
    yield cli
    await cli.close()


def status(port: str) -> int:
    """The answer of the server's probe."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.URLError:
        return 0


async def test_ready_is_said_once_it_listens_and_stopping_before_it_ends(
    cli: Cli, manager: Manager
) -> None:
    process = await cli.start("serve")
    port = cli.variables["SOLOCRON_PORT"]
    assert f"STATUS=2 jobs, port {port}" in await manager.hears("READY=1")
    assert await asyncio.to_thread(status, port) == 200
    process.send_signal(signal.SIGTERM)
    await manager.hears("STOPPING=1")
    result = await finished(process)
    assert result.code == 0 and "cannot be told" not in result.err


async def test_signs_of_life_come_twice_a_period(cli: Cli, manager: Manager) -> None:
    await cli.start("serve")
    await manager.hears("READY=1")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(10):
        await manager.hears("WATCHDOG=1")
    assert loop.time() - began > 9 * PERIOD_S / 2 * 0.8  # and not in a burst


async def test_a_blocked_loop_falls_silent_and_is_heard_of_again(
    cli: Cli, manager: Manager, redis_server: RedisServer
) -> None:
    process = await zygote.start(
        {"code": BLOCKING_HOST}, [], cwd=cli.folder, stdout=zygote.PIPE,
        env={"PYTHONPATH": str(APP), **cli.variables},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            await manager.hears("READY=1")
            assert await process.stdout.readline() == b"blocks\n"
            manager.heard()
            assert await process.stdout.readline() == b"runs on\n"
            assert manager.heard() <= 1  # of 16: one may be sent before the line is read
            await manager.hears("WATCHDOG=1")
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("manager", ["path"], indirect=True)
async def test_what_is_meant_for_another_process_is_left_alone(cli: Cli, manager: Manager) -> None:
    process = await cli.start("serve", WATCHDOG_PID="1")
    await manager.hears("READY=1")
    process.send_signal(signal.SIGTERM)
    assert (await manager.hear())[0] == "STOPPING=1"
    assert (await finished(process)).code == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
async def test_a_manager_that_does_not_listen_stops_nobody(cli: Cli, manager: Manager) -> None:
    for address, complaint in (
        (str(cli.folder / "nobody"), "The service manager cannot be told: No such file"),
        ("vsock:2:1234", "NOTIFY_SOCKET is 'vsock:2:1234': only Unix sockets are known"),
        ("@" + "x" * 200, "only Unix sockets are known"),
    ):
        process = await cli.start("serve", NOTIFY_SOCKET=address)
        assert process.stderr is not None
        lines = []
        async with asyncio.timeout(30):
            while not any("listening" in each for each in lines):
                lines.append((await process.stderr.readline()).decode())
        process.send_signal(signal.SIGTERM)
        result = await finished(process)
        said = "".join(lines) + result.err
        assert result.code == 0 and said.count(complaint) == 1, said
