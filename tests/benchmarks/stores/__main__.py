"""The command line of the benchmark; `make bench-stores` calls it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.common import Say, conduct, count, machine, parser, present
from benchmarks.common_world import world
from benchmarks.stores.measure import Measure, Size
from benchmarks.stores.report import Findings

_DESCRIPTION = """\
Measures a run of the job that closes stores whose hours have ended: the whole service, on uvloop,
with a real Redis, and stores in PostgreSQL or SQLite of which half are due. Beside it stand the
statements that such a run comes down to: three in one transaction, by somebody who knows already
which hours are due, and two more that note what was told as published. They leave the same rows
behind, but find out nothing, publish nothing, are fair to nobody and have no lease to lose. The
database is not forced to the disk, for neither.

  run        until the run ended, and until all it told was published
  meanwhile  memory of the server over idle; how late its loop is; how long after a store was closed
             a WebSocket client heard of it
  again      a second run, with nothing due

Exit code: 0 when all was measured, whatever came of it; 1 when something could not be, or a run did
not close just what was due; 130 after Ctrl-C, which prints what was done."""

_SIZES = (
    Size("PostgreSQL", 10_000, 500), Size("PostgreSQL", 100_000, 500),
    Size("PostgreSQL", 1_000_000, 500), Size("PostgreSQL", 1_000_000, 50_000),
    Size("SQLite", 10_000, 500), Size("SQLite", 100_000, 500),
)  # fmt: skip
_QUICK = (
    Size("PostgreSQL", 1000, 20), Size("PostgreSQL", 4000, 20), Size("PostgreSQL", 4000, 1000),
    Size("SQLite", 1000, 20),
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit code."""
    options = parser("stores", _DESCRIPTION)
    options.add_argument(
        "--rounds", type=count, default=5, help="turns of each size, at most: as there is time (5)"
    )
    options.add_argument(
        "--most", type=count, default=1_000_000, help="leave larger tables out (1000000)"
    )
    asked = options.parse_args(arguments)
    sizes, times = (_QUICK, 1) if asked.quick else (_SIZES, asked.rounds)
    found, before = Findings(), machine()

    def work(say: Say) -> None:
        with world("stores") as made:
            measure = Measure(made, say)
            for size in sizes:
                if size.stores <= asked.most:
                    found.turns[size] = measure.rounds(size, times)

    def report(console: Console) -> None:
        if found.turns:
            present(console, "stores", found, found.table(), on=before, folder=asked.results)

    return conduct("stores", work, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
