"""A server of the benchmark in a process of its own, as this one sees it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.push.swarm import SwarmError

_ANSWER_S = 60.0
_STOP_S = 20.0


class Server:
    """A process that serves one way to push, on `port`."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._answers = control.makefile("r")
        self.port = int(self.answer())

    def ask(self, command: str, *arguments: int) -> Any:
        """The answer to a command. Raises SwarmError."""
        self.tell(command, *arguments)
        return self.answer()

    def tell(self, command: str, *arguments: int) -> None:
        """Send a command, whose answer is asked for by `answer`."""
        self._control.sendall(json.dumps([command, *arguments]).encode() + b"\n")

    def answer(self) -> Any:
        """The answer to the oldest command that was told. Raises SwarmError."""
        try:
            line = self._answers.readline()
        except TimeoutError:
            raise SwarmError(f"a server did not answer within {_ANSWER_S:g} s") from None
        if not line:
            raise SwarmError("a server ended: see what it wrote above")
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
def running(way: str, environment: Mapping[str, str]) -> Iterator[Server]:
    """A server, until the end of the block. It ends with this process, and Ctrl-C is not for it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_ANSWER_S)
    inherited = {name: each for name, each in os.environ.items() if "SOLOCRON" not in name}
    paths = os.pathsep.join(filter(None, sys.path))
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.push.server", way, str(theirs.fileno())],
            env={**inherited, **environment, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
    try:
        server = Server(process, ours)
    except BaseException:
        ours.close()
        process.kill()
        process.wait()
        raise
    try:
        yield server
    finally:
        server.stop()
