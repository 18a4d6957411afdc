"""The command line of the benchmark; `make bench-ticks` calls it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.common import Say, conduct, count, machine, parser, present
from benchmarks.common_world import world
from benchmarks.ticks.counts import per_tick
from benchmarks.ticks.measure import Measure, Size
from benchmarks.ticks.plan import Plan
from benchmarks.ticks.report import Findings

_DESCRIPTION = """\
Measures how late jobs begin that one process runs by their schedules, and what hosting them costs:
the whole service on a real Redis and PostgreSQL, beside aiocron and APScheduler 3, which are timers
of one process and tell nobody, and arq and procrastinate, which pass jobs through Redis or
PostgreSQL. Each process is on uvloop, and has the machine to itself while it is measured; they
take turns, and the bodies only note the time.

  lateness   from a tick's nominal time to its body's first statement: one job due each second, 100
             of which ten are due each second, 100 due at the same second, and 10,000 of which 167
             are due each second
  idle       1,000 jobs of which none comes due: CPU and memory
  commands   of a tick on 1, 10 and 50 workers, as Redis and PostgreSQL count them; a worker that
             loses must send Redis one, and the database none

A peer that is not installed, or does not work here, is listed with the reason.

Exit code: 0 when all was measured, whatever came of it; 1 when something could not be; 130 after
Ctrl-C, which prints what was done."""

_DUE = (
    Size(Plan(1, 1), 2), Size(Plan(100, 10), 2), Size(Plan(100, 2, together=True), 2),
    Size(Plan(10_000, 60), 3),
)  # fmt: skip
_IDLE = Size(Plan(1000, 0), 4)
_WORKERS, _TICKS = (1, 10, 50), 10
_QUICK_DUE, _QUICK_IDLE = (Size(Plan(10, 10), 2), Size(Plan(100, 60), 2)), Size(Plan(100, 0), 1)
_QUICK_WORKERS, _QUICK_TICKS = (1, 3), 3


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit code."""
    options = parser("ticks", _DESCRIPTION)
    options.add_argument("--rounds", type=count, default=5, help="turns of each way (5)")
    asked = options.parse_args(arguments)
    due, idle, times = (_DUE, _IDLE, asked.rounds)
    workers, ticks = _WORKERS, _TICKS
    if asked.quick:
        due, idle, times, workers, ticks = _QUICK_DUE, _QUICK_IDLE, 1, _QUICK_WORKERS, _QUICK_TICKS
    found, before = Findings(), machine()

    def work(say: Say) -> None:
        with world("ticks") as made:
            measure = Measure(made, found.missing, say)
            for size in due:
                found.turns[size] = measure.rounds(size, times)
            found.turns[idle] = measure.rounds(idle, 1)
            for each in workers:
                say(f"commands of a tick: {each} workers")
                found.costs.append(asyncio.run(per_tick(made, each, ticks)))

    def report(console: Console) -> None:
        if found.turns:
            present(console, "ticks", found, found.table(), on=before, folder=asked.results)

    return conduct("ticks", work, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
