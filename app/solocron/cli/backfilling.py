"""`solocron backfill`: runs the ticks of the past that have no run that succeeded."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from solocron.cli.console import complain, run_to_end, service, who
from solocron.errors import ConfigError

if TYPE_CHECKING:
    from solocron.cron.backfill import Backfilled, Told

_MAX_TEXT = 40


def backfill(
    job: Annotated[str, typer.Argument(help="The job's name, as `jobs` lists it.")],
    from_: Annotated[
        str, typer.Option("--from", help="ISO 8601, in the job's zone unless it has one.")
    ],
    to: Annotated[str, typer.Option(help="Likewise; a tick at that time is the last one.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do.")
    ] = False,
) -> None:
    """Run each tick of a span that has no run that succeeded, once, the oldest first.

    Any number of servers may do so at once, and the schedule goes on. Ctrl-C gives back the run
    that it is at; the same command goes on there. Exit code 0 only if no run failed, and with
    --dry-run whatever there is to do.
    """
    since, until = _time("--from", from_), _time("--to", to)
    cron = service(working=True)
    last: list[Backfilled] = []

    async def work() -> Backfilled:
        try:
            async with cron.parts.locks:
                with _Bar(job) as told:

                    def noted(found: Backfilled) -> None:
                        last[:] = [found]
                        told(found)

                    return await cron.backfill(
                        job, since, until, by=who(), dry_run=dry_run, told=noted
                    )
        finally:
            await cron.parts.close()

    try:
        found = run_to_end(work())
    except (KeyboardInterrupt, asyncio.CancelledError):
        done = f"{last[0].done} of {len(last[0].wanted)} ticks are done" if last else "stopped"
        complain(f"{job}: {done}: the same command goes on there")
        raise
    _say(job, found, dry_run)


def _say(job: str, found: Backfilled, dry_run: bool) -> None:
    from solocron.cli.console import moment

    print(f"{job}: {len(found.wanted)} of {found.ticks} ticks have no run that succeeded")
    if dry_run:
        for tick in found.wanted:
            print(moment(tick))
        return
    print(f"{found.succeeded} succeeded, {found.failed} failed, {found.elsewhere} run elsewhere")
    if found.failed:
        complain(f"{job}: {found.failed} runs failed; what of: solocron history {job}")
        raise typer.Exit(1)


def _time(option: str, text: str) -> datetime:
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} is {text[:_MAX_TEXT]!r}: give a time such as 2026-03-29T06:00"
        ) from None


class _Bar:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, job: str) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        self._job = job
        self._progress = Progress(
            *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def __enter__(self) -> Told:
        self._progress.start()
        task = self._progress.add_task(self._job, total=None)

        def told(found: Backfilled) -> None:
            self._progress.update(task, total=len(found.wanted), completed=found.done)

        return told

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
