"""Processes that start in milliseconds: forks of one that has imported the package already.

To import solocron and what it needs takes a second of CPU time, and the tests start hundreds of
workers and commands. Each is a process of its own, with the arguments, environment, folder and
standard streams it would have; only the imports are shared. (What is installed, the console script,
the demo and the README's commands are started for real.)
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_PRELOADED = (
    "alembic.command", "asyncpg", "aiosqlite", "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite", "uvloop", "rich.progress", "rich.table", "solocron.cli",
    "solocron.cli.examining", "solocron.serving", "solocron.stores.importing",
)  # fmt: skip
_INT = struct.Struct("i")
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL


# -- the tests' side ---------------------------------------------------------------------------


class Forked:
    """What `asyncio.subprocess.Process` is to a program, for a fork."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._status = status
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(status, self._on_end)

    def _on_end(self) -> None:
        said = self._status.recv(_INT.size)
        self._loop.remove_reader(self._status)
        self._status.close()
        self.returncode = _INT.unpack(said)[0] if said else -signal.SIGKILL
        if self.stdin is not None:
            self.stdin.close()
        self._ended.set()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def communicate(self, typed: bytes | None = None) -> tuple[bytes, bytes]:
        if self.stdin is not None:
            self.stdin.write(typed or b"")
            self.stdin.close()
        streams = (self.stdout, self.stderr)
        out, err = await asyncio.gather(*(_all(each) for each in streams))
        await self.wait()
        return out, err


async def _all(stream: asyncio.StreamReader | None) -> bytes:
    return b"" if stream is None else await stream.read()


async def start(
    run: Mapping[str, str], argv: Sequence[str], *, env: Mapping[str, str],
    cwd: Path | None = None, stdin: Any = None, stdout: Any = None, stderr: Any = None,
    strict: bool = False, new_session: bool = False,
) -> Forked:  # fmt: skip
    """Run a `path`, `module` or `code` in a process of its own. `strict` makes warnings errors."""
    request = {
        "run": dict(run), "argv": list(argv), "env": dict(env), "cwd": str(cwd or Path.cwd()),
        "strict": strict, "new_session": new_session,
    }  # fmt: skip
    ours, theirs, opened = [], [], []
    for number, wanted in enumerate((stdin, stdout, stderr)):
        mine, its = _stream(number, wanted)
        ours.append(mine)
        theirs.append(its)
        if its != number and (mine is not None or wanted == DEVNULL):
            opened.append(its)
    status, reported = socket.socketpair()
    control, _ = _zygote(tuple(sys.path))
    socket.send_fds(control, [json.dumps(request).encode()], [*theirs, reported.fileno()])
    reported.close()
    for each in opened:
        os.close(each)
    process = Forked(_INT.unpack(status.recv(_INT.size))[0], status)
    process.stdin, process.stdout, process.stderr = await asyncio.gather(
        _writer(ours[0]), _reader(ours[1]), _reader(ours[2])
    )
    return process


def _stream(number: int, wanted: Any) -> tuple[int | None, int]:
    """(our end of a pipe, its end) of a standard stream."""
    if wanted == PIPE:
        read, write = os.pipe()
        return (write, read) if number == 0 else (read, write)
    if wanted == DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if wanted is None:
        return None, number
    return None, wanted if isinstance(wanted, int) else wanted.fileno()


async def _reader(descriptor: int | None) -> Any:
    if descriptor is None:
        return None
    stream = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", 0)
    )
    return stream


async def _writer(descriptor: int | None) -> Any:
    if descriptor is None:
        return None
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(descriptor, "wb", 0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


@functools.lru_cache(maxsize=1)
def _zygote(path: tuple[str, ...]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The way to this process's zygote, which ends with this process, and the zygote itself."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )  # fmt: skip
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours, process


# -- the zygote's side -------------------------------------------------------------------------


def _serve(control: socket.socket) -> dict[str, Any]:
    """Fork for each request and tell how each fork ended. Returns in the forks only."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    statuses: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    woken.recv(4096)
                    _reap(statuses)
                    continue
                message, descriptors, *_ = socket.recv_fds(control, 2**20, 4)
                if not message:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for each in (control, woken, waker, *statuses.values()):
                        each.close()
                    request: dict[str, Any] = json.loads(message)
                    _become(request, descriptors)
                    return request
                for each in descriptors[:3]:
                    os.close(each)
                status = statuses[pid] = socket.socket(fileno=descriptors[3])
                status.send(_INT.pack(pid))


def _reap(statuses: dict[int, socket.socket]) -> None:
    while statuses:
        pid, ended = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with statuses.pop(pid) as status, suppress(OSError):  # nobody waits for it any more
            status.send(_INT.pack(os.waitstatus_to_exitcode(ended)))


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Take on what the request says this process is."""
    for number, each in enumerate(descriptors[:3]):
        os.dup2(each, number)
    for each in descriptors:
        os.close(each)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # As the interpreter makes them at its start.
    coding = os.environ.get("PYTHONIOENCODING")
    sys.stdin = open(0, closefd=False, encoding=coding)  # noqa: SIM115
    sys.stdout = open(  # noqa: SIM115
        1, "w", 1 if os.isatty(1) else -1, closefd=False, encoding=coding
    )
    sys.stderr = open(  # noqa: SIM115
        2, "w", 1, closefd=False, encoding=coding, errors="backslashreplace"
    )
    if request["strict"]:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "'imghdr' is deprecated")  # Apprise's import of it


def main() -> None:
    for name in _PRELOADED:
        __import__(name)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    run = request["run"]
    sys.argv = [run.get("path", "solocron"), *request["argv"]]
    if "path" in run:
        runpy.run_path(run["path"], run_name="__main__")
    elif "module" in run:
        runpy.run_module(run["module"], run_name="__main__")
    else:
        exec(run["code"], {"__name__": "__main__"})


if __name__ == "__main__":
    main()
