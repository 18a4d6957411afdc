"""The command line of a trial; `make delivery` calls it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from acceptance.delivery.mutations import BREAKS
from acceptance.delivery.plan import STORES, plan
from acceptance.delivery.trial import Options, Progress, run

_DESCRIPTION = """\
Three real servers write notifications while they are killed, frozen and replaced, Redis is
restarted, emptied and away, and clients are cut off. In the end every client must have every
notification of its stores, byte for byte as the table has it, once and in order.

  make delivery                              2,000 clients and 100,000 notifications
  make delivery CLIENTS=200 NOTIFICATIONS=10000 SEED=7
  make delivery MUTATION=no-resume           the servers are broken on purpose: this must end red

Exit code: 0 when all was well, 1 when something was lost, repeated or altered, 130 when
interrupted; make says 2 for any but 0."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make delivery", description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--clients", type=int, default=2000, help="how many clients (2000)")
    add("--notifications", type=int, default=100_000, help="how many, at least (100000)")
    add("--faults", type=int, default=None, help="how many (1 for 6000 notifications, at least 7)")
    add("--seed", type=int, default=None, help="decides faults and clients (any, printed)")
    add("--mutation", choices=tuple(BREAKS), default="", help="break the servers")
    add("--keep", type=Path, metavar="FOLDER", help="keep the logs of all processes there")
    return parser.parse_args(arguments)


def options_of(asked: argparse.Namespace) -> Options:
    """The trial that is asked for."""
    seed = random.SystemRandom().randrange(1_000_000) if asked.seed is None else asked.seed
    count = max(7, asked.notifications // 6000) if asked.faults is None else asked.faults
    only = BREAKS[asked.mutation][1] if asked.mutation else ()
    return Options(
        seed=seed, clients=asked.clients, notifications=asked.notifications,
        faults=plan(seed, asked.notifications, count, only),
        stores=min(STORES, max(20, asked.notifications // 40)),
        mutation=asked.mutation, settle_s=8 if asked.mutation else 240, keep=asked.keep,
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run what is asked for; the exit code."""
    options = options_of(parse(arguments))
    console = Console()
    console.print(
        f"seed {options.seed}: {options.clients} clients, {options.notifications} notifications, "
        f"{len(options.faults)} faults" + f", broken by {options.mutation}" * bool(options.mutation)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[taken]} delivered"), TimeElapsedColumn(),
               TextColumn("{task.fields[faults]}"))  # fmt: skip
    with Bars(*columns, console=console) as bars:
        bar = bars.add_task("", total=options.notifications, taken=0, faults="")

        def look(progress: Progress) -> None:
            bars.update(
                bar, completed=min(progress.written, options.notifications),
                description=progress.phase, taken=progress.taken,
                faults=", ".join(progress.faults),
            )  # fmt: skip

        try:
            report = asyncio.run(run(options, Progress(look)))
        except KeyboardInterrupt:
            return 130
    print(report)
    if report.is_green:
        return 0
    console.print(
        f"again: make delivery CLIENTS={options.clients} NOTIFICATIONS={options.notifications} "
        f"SEED={options.seed}" + f" MUTATION={options.mutation}" * bool(options.mutation)
    )
    return 1


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel("ERROR")
    sys.exit(main(sys.argv[1:]))
