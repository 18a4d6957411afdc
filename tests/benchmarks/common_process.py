"""A process of a benchmark, as the one that measures sees it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import BenchError

PEERS = Path(".venv-peers")
_TESTS = Path(__file__).parent.parent
_ANSWER_S = 120.0
_STOP_S = 20.0


class Process:
    """A process that does what it is told; `said` is what it began with."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._name = name
        self._process = process
        self._control = control
        self._answers = control.makefile("r")
        self.pid = process.pid
        self.said = self.answer()

    def ask(self, command: str, *arguments: Any) -> Any:
        """The answer to a command. Raises BenchError."""
        self.tell(command, *arguments)
        return self.answer()

    def tell(self, command: str, *arguments: Any) -> None:
        """Send a command, whose answer is asked for by `answer`. Raises BenchError."""
        try:
            self._control.sendall(json.dumps([command, *arguments]).encode() + b"\n")
        except OSError:
            raise BenchError(f"{self._name} ended: see what it wrote above") from None

    def answer(self) -> Any:
        """The answer to the oldest command that was told. Raises BenchError."""
        try:
            line = self._answers.readline()
        except TimeoutError:
            raise BenchError(f"{self._name} did not answer in time") from None
        except OSError:
            line = ""
        if not line:
            raise BenchError(f"{self._name} ended: see what it wrote above")
        return json.loads(line)

    def stop(self) -> None:
        """End it."""
        self._answers.close()
        self._control.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, *,
    patience_s: float = _ANSWER_S,
) -> Iterator[Process]:  # fmt: skip
    """A process, until the end of the block, that answers within `patience_s`. It ends with this
    one, and Ctrl-C is not for it. Raises BenchError."""
    ours, theirs = socket.socketpair()
    ours.settimeout(patience_s)
    inherited = {each: value for each, value in os.environ.items() if "SOLOCRON" not in each}
    with theirs:
        started = subprocess.Popen(
            command, env={**inherited, **(environment or {})}, stdin=theirs, start_new_session=True
        )
    try:
        process = Process(name, started, ours)
    except BaseException:
        ours.close()
        started.kill()
        started.wait()
        raise
    try:
        yield process
    finally:
        process.stop()


def ours(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a module that runs in this environment."""
    paths = os.pathsep.join(filter(None, sys.path))
    return [sys.executable, "-m", module, *arguments], {"PYTHONPATH": paths}


def theirs(group: str, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The same of one that runs in the environment of a group of peers. Raises BenchError when
    there is none."""
    python = PEERS / group / "bin" / "python"
    if not python.exists():
        raise BenchError(f"not installed: make peers-{group}")
    return [str(python.absolute()), "-m", module, *arguments], {"PYTHONPATH": str(_TESTS)}
