"""The command line of the benchmark; `make bench-locks` calls it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.common import Say, conduct, count, machine, parser, present
from benchmarks.locks import counts
from benchmarks.locks.measure import rounds, ways
from benchmarks.locks.report import Findings
from conftest import RedisServer

_DESCRIPTION = """\
Measures how often per second tasks of one process take and free a lock each: solocron's lock
manager beside redis-py's Lock, pottery, aioredlock and coredis, each as its documentation has it,
Node's ioredis with SET NX and a release script, and redis-benchmark with two SETs for each cycle
and a connection for each task: a client in C that does nothing else. Each is a process of its own
(Python's on uvloop), and all have one Redis. They take turns, so the ratios hold on a busy machine;
rates do not. Then it counts the scripts that a lock costs, as Redis itself does.

A peer that is not installed, or does not work here, is listed with the reason.

Exit code: 0 when all was measured, whatever came of it; 1 when something could not be; 130 after
Ctrl-C, which prints what was done."""

_SIZES, _QUICK = (1, 8, 64, 256), (1, 8)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit code."""
    options = parser("locks", _DESCRIPTION)
    options.add_argument("--rounds", type=count, default=7, help="turns of each way; medians (7)")
    asked = options.parse_args(arguments)
    sizes, times, seconds = (_QUICK, 1, 0.1) if asked.quick else (_SIZES, asked.rounds, 0.8)
    found, before = Findings(), machine()

    def work(say: Say) -> None:
        with tempfile.TemporaryDirectory(prefix="locks-") as folder:
            redis = RedisServer(Path(folder))
            redis.start()
            try:
                with ways(redis.port, max(sizes)) as (locks, found.missing):
                    found.turns = rounds(locks, sizes, count=times, seconds=seconds, say=say)
                say("counting commands")
                found.counts = asyncio.run(counts.count(redis))
            finally:
                redis.stop()

    def report(console: Console) -> None:
        if found.turns:
            shown = found.table(f"Cycles of acquire and release, medians of {times} turns")
            present(console, "locks", found, shown, on=before, folder=asked.results)

    return conduct("locks", work, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
