"""`solocron demo` as a real process, and what is left of it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from conftest import redis_binary

_T = TypeVar("_T")


class Demo:
    """The command in a session of its own, with a temporary folder that nobody else uses."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from solocron.cli import main; main()", "demo", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        )  # fmt: skip

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read lines until one matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no line matched {pattern!r}:\n{self.output}")

    def finish(self) -> int:
        """Read to the end; the exit code."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
        return self.process.wait(20)

    def kill(self) -> None:
        """Kill it and all it has started."""
        for pid in self.relatives():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def runs_under_way(self) -> list[int]:
        """The pids of workers that have written a part of a run, as the database has them."""
        [database] = self.folder.glob("*/demo.db")
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                "SELECT owner FROM job_runs WHERE state = 'running' AND EXISTS (SELECT 1 FROM "
                "notifications WHERE created_at >= started_at)"
            )
            return [int(owner.rpartition(":")[2]) for (owner,) in rows]

    def relatives(self) -> list[int]:
        """Processes that have the temporary folder in their environment or as their directory."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                marks = (each / "environ").read_bytes() + os.readlink(each / "cwd").encode()
                if str(self.folder).encode() in marks:
                    found.append(int(each.name))
        return found

    def left(self) -> list[object]:
        """What is still there of it: processes and files."""
        return [*self.relatives(), *self.folder.iterdir()]


def until(condition: Callable[[], _T], timeout_s: float = 20) -> _T:
    """Poll until it is true, and return what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)
    return found


@contextmanager
def demos(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """What starts a demo with these arguments; whatever is left of one is killed at the end."""
    redis_binary()  # skips where there is none
    folder = tmp_path / "temporary"
    folder.mkdir()
    started: list[Demo] = []

    def begin(*arguments: str) -> Demo:
        started.append(Demo(folder, *arguments))
        return started[-1]

    try:
        yield begin
    finally:
        for demo in started:
            demo.kill()
            demo.process.wait()
            assert demo.process.stdout is not None
            demo.process.stdout.close()
