"""`solocron stores`: look at stores and import them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solocron import logs
from solocron.cli.console import JsonOption, print_rows, run_to_end, service

if TYPE_CHECKING:
    from rich.progress import Progress

    from solocron.service import Solocron
    from solocron.stores.importing import ImportReport

stores_app = typer.Typer(no_args_is_help=True, help="Look at stores and import them.")


@stores_app.command("list")
def list_stores(
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 50,
    after: Annotated[str | None, typer.Option(help="Only ids after this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List stores by id."""
    cron = service()

    async def work() -> list[dict[str, Any]]:
        try:
            stores = await cron.parts.stores.page(after=after, limit=limit)
        finally:
            await cron.parts.close()
        return [asdict(each) for each in stores]

    headings = {"id": "id", "name": "name", "timezone": "zone", "hours": "hours",
                "country": "country", "is_open": "open"}  # fmt: skip
    print_rows(run_to_end(work()), headings, as_json)


@stores_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV with a header row, JSON array, or JSON lines.")],
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the good rows although some are bad.")
    ] = False,
) -> None:
    """Import stores. Bad rows are told one by one; without --skip-bad one bad row stops it all.

    A store whose id exists is changed; whether it is open stays as it is. Interrupted, it leaves
    whole batches: import the file again for the rest.
    """
    cron = service()
    with _progress() as bar:
        report = run_to_end(_imported(cron, file, skip_bad, bar))
    for bad in report.bad:
        where = f"line {bad.line}: {bad.field}" if bad.field else f"line {bad.line}"
        print(logs.one_line(f"{where}: {bad.reason}"), file=sys.stderr)
    if report.bad_count > len(report.bad):
        print(f"... and {report.bad_count - len(report.bad)} more bad rows", file=sys.stderr)
    print(f"{report.read} rows read, {report.imported} imported, {report.bad_count} bad.")
    if report.bad_count and not skip_bad:
        print("Nothing was imported: mend the rows, or give --skip-bad.", file=sys.stderr)
        raise typer.Exit(1)


def _progress() -> Progress:
    """A bar on stderr, if that is a terminal."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(),
        progress.TaskProgressColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    return progress.Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )


async def _imported(cron: Solocron, file: Path, skip_bad: bool, bar: Progress) -> ImportReport:
    from solocron.stores.importing import check_importable, import_stores

    parts = cron.parts
    checked = bar.add_task("checking", total=None)
    written = bar.add_task("importing", total=None, visible=False)

    def advance(rows: int, total: int | None) -> None:
        if total is None:
            bar.update(checked, advance=rows)
            return
        bar.update(checked, total=total)
        bar.update(written, advance=rows, total=total, visible=True)

    try:
        check_importable(parts.stores.repository)
        if parts.database.dialect == "sqlite":
            await parts.database.migrate()
        return await import_stores(
            parts.database, file, clock=parts.clock, skip_bad=skip_bad, advance=advance
        )
    finally:
        await parts.close()
