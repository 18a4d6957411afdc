"""The command line as a real subprocess: what it prints, and how it exits."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import solocron
import zygote

APP = Path(solocron.__file__).parent.parent  # the checkout under test
CODE = "from solocron.cli import main; main()"
SETTING = re.compile(r"SOLOCRON_|REDIS_|DATABASE_URL|PYTHON")


@dataclass(frozen=True)
class Result:
    """One finished command."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr that is not a log line."""
        lines = [line for line in self.err.splitlines() if line.startswith("solocron: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class Cli:
    """Runs commands in `folder` with the settings `variables`, and no others."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.variables = dict(variables)
        self._started: list[zygote.Forked] = []

    async def start(
        self, *args: str, stdin: int | None = asyncio.subprocess.DEVNULL, stdout: Any = None,
        stderr: Any = None, **variables: str,
    ) -> zygote.Forked:  # fmt: skip
        """Start a command; without `stdout` and `stderr` both are piped."""
        inherited = {k: v for k, v in os.environ.items() if not SETTING.match(k)}
        process = await zygote.start(
            {"code": CODE}, args, cwd=self.folder, stdin=stdin, strict=True,
            stdout=stdout or zygote.PIPE, stderr=stderr or zygote.PIPE,
            env={**inherited, "PYTHONPATH": str(APP), **self.variables, **variables},
        )  # fmt: skip
        self._started.append(process)
        return process

    async def close(self) -> None:
        """Kill what a failed test left running."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def __call__(self, *args: str, answer: str | None = None, **variables: str) -> Result:
        """Run a command to its end; `answer` is what its user types."""
        stdin = asyncio.subprocess.DEVNULL if answer is None else asyncio.subprocess.PIPE
        process = await self.start(*args, stdin=stdin, **variables)
        return await finished(process, None if answer is None else answer.encode())


async def finished(process: zygote.Forked, typed: bytes | None = None) -> Result:
    """Wait for a command's end. No command may ever show a traceback."""
    async with asyncio.timeout(60):
        out, err = await process.communicate(typed)
    result = Result(process.returncode or 0, out.decode(), (err or b"").decode())
    assert "Traceback" not in result.err, result.err
    return result


async def listening(process: zygote.Forked) -> int:
    """The port a `serve` listens on, as its log says."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while line := await process.stderr.readline():
            if found := re.search(rb"listening on http://[^ ]*:(\d+)", line):
                return int(found[1])
    raise AssertionError("serve ended before it listened")
