"""The command line. A user's mistake is one line on stderr and exit code 2, never a traceback.

Exit codes: 0 done, 1 the job or the import failed (or a question was not answered with yes), 2 a
wrong setting or argument, 3 nothing was done because another server is at it or something is not
reachable, 130 interrupted.

Only results go to stdout; log lines, questions and complaints go to stderr.
"""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from solocron import logs
from solocron.cron.outcome import Outcome
from solocron.errors import (
    ConfigError,
    InvalidInput,
    LockUnavailable,
    SolocronError,
    StorageUnavailable,
)
from solocron.locks.keys import check_key
from solocron.service import Solocron
from solocron.serving import serve_until_signalled
from solocron.settings import load
from solocron.stores.importing import ImportReport, import_stores
from solocron.stores.model import is_store_id
from solocron.web.auth import SCOPES

_T = TypeVar("_T")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Cron jobs that run once, however many servers run them. Settings come from the "
    "environment: REDIS_URL, DATABASE_URL and SOLOCRON_*; see the README.",
)  # fmt: skip
stores_app = typer.Typer(no_args_is_help=True, help="Look at stores and import them.")
app.add_typer(stores_app, name="stores")

_PIPE_WIDTH = 10_000

# What a job that was not run is told for; the reasons are the runner's.
_SKIPPED = {
    "held": "another server is running it",
    "done": "it has run already",
    "paused": "it is paused",
    "redis-down": "Redis is not reachable, and SOLOCRON_ON_REDIS_DOWN is skip",
    "database-down": "the database cannot be used",
}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks the characters
    try:
        app(prog_name="solocron")
    except (ConfigError, InvalidInput) as error:
        _complain(error)
        sys.exit(2)
    except (LockUnavailable, StorageUnavailable) as error:
        _complain(error)
        sys.exit(3)
    except SolocronError as error:
        _complain(error)
        sys.exit(1)
    except asyncio.CancelledError:
        sys.exit(130)


def _complain(error: object) -> None:
    for line in str(error).splitlines():
        print(f"solocron: {logs.one_line(line)}", file=sys.stderr)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work`; SIGTERM cancels it as Ctrl-C does, so that it can give back what it holds."""

    async def cancellable() -> _T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(cancellable())


def _service(*, working: bool = False) -> Solocron:
    """The service. Commands that only look say what is wrong themselves: unless debugging, they
    log errors only."""
    settings = load()
    looking = not working and settings.log_level != "debug"
    logs.configure(settings.log_format, "error" if looking else settings.log_level)
    return Solocron(settings)


def _print(rows: list[dict[str, Any]], columns: dict[str, str], as_json: bool) -> None:
    """Rows as JSON, or as a table of `columns` (key -> heading). Nothing is cut off: what does
    not fit a terminal is folded, and a pipe has no width."""
    if as_json:
        print(json.dumps(rows, default=str))
        return
    table = Table(*(Column(heading, overflow="fold") for heading in columns.values()))
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in columns))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else escape(logs.one_line(str(value)))


def _moment(ms: float | None) -> str | None:
    if ms is None or ms < 0:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


@app.command()
def serve() -> None:
    """Run the jobs and the WebSocket server until SIGTERM or SIGINT (Ctrl-C).

    On the first signal no new tick begins, running jobs finish within SOLOCRON_GRACE seconds or
    are handed over, and sockets are closed with 1001. A second signal stops at once.
    """
    _run(serve_until_signalled(_service(working=True)))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this release's. Safe to run on several servers at once."""
    cron = _service()

    async def work() -> None:
        try:
            await cron.parts.database.migrate()
        finally:
            await cron.parts.database.close()

    _run(work())
    print("The database is migrated.")


@app.command()
def jobs(as_json: JsonOption = False) -> None:
    """List the jobs with their schedules and next ticks."""
    cron = _service()
    now = cron.parts.clock.now_ms()
    rows = [
        {
            "job": job.name,
            "schedule": job.calendar.expression,
            "zone": job.calendar.zone,
            "next_tick": _moment(job.calendar.next_after(now)),
            "ttl_s": job.ttl_ms // 1000,
            "lock_key": job.lock_key,
        }
        for job in cron.jobs.values()
    ]
    headings = {"job": "job", "schedule": "schedule", "zone": "zone", "next_tick": "next tick",
                "ttl_s": "TTL s", "lock_key": "lock key"}  # fmt: skip
    _print(rows, headings, as_json)


@app.command()
def run(job: Annotated[str, typer.Argument(help="The job's name, as `jobs` lists it.")]) -> None:
    """Run a job now, once, unless a server is running it. Exit code 0 only if it succeeded.

    Ctrl-C cancels the run. Its lock is freed at once.
    """
    cron = _service(working=True)

    async def work() -> Outcome:
        try:
            async with cron.parts.locks:
                return await cron.run_job(job)
        finally:
            await cron.parts.fanout.close()
            await cron.parts.database.close()

    outcome = _run(work())
    counts = ", ".join(f"{name} {count}" for name, count in outcome.counts.items())
    if outcome.state == "succeeded":
        print(f"{job}: succeeded in {outcome.duration_ms} ms" + (f": {counts}" if counts else ""))
        return
    reason = outcome.reason or ""
    reason = _SKIPPED.get(reason, reason) if outcome.state == "skipped" else reason
    detail = f": {outcome.detail}" if outcome.detail else ""
    _complain(f"{job}: {outcome.state}: {reason}{detail}")
    raise typer.Exit(3 if outcome.state == "skipped" else 1)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show Redis, the database, and each job's lock and last run.

    Exit code 3 if Redis or the database is down, or the database is not migrated.
    """
    cron = _service()
    parts = cron.parts

    async def work() -> dict[str, Any]:
        try:
            async with parts.locks:
                return await cron.status()
        finally:
            await parts.database.close()

    state = _run(work())
    if as_json:
        print(json.dumps(state, default=str))
    else:
        print(f"redis: {state['redis']}   database: {state['database']}")
        ticks = ("next_tick", "last_tick")
        rows = [{**each, **{k: _moment(each[k]) for k in ticks}} for each in state["jobs"]]
        headings = {"job": "job", "next_tick": "next tick", "owner": "lock held by",
                    "paused": "paused", "last_tick": "last tick", "state": "state",
                    "attempt": "attempt", "duration_ms": "ms", "error": "error"}  # fmt: skip
        _print(rows, headings, False)
        if state["deliveries"]:
            headings = {each: each for each in ("channel", "pending", "sent", "dead", "skipped")}
            _print(state["deliveries"], headings, False)
    for problem in state["problems"]:
        _complain(problem)
    if state["problems"]:
        raise typer.Exit(3)


@app.command()
def locks(as_json: JsonOption = False) -> None:
    """List the locks held now, with their owners and remaining TTL."""
    cron = _service()

    async def work() -> list[dict[str, Any]]:
        async with cron.parts.locks as manager:
            return await manager.locks()

    _print(_run(work()), {"key": "key", "owner": "owner", "ttl_ms": "TTL ms"}, as_json)


@app.command()
def unlock(
    key: Annotated[str, typer.Argument(help="The lock key, such as cron:store-auto-close.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a lock, whoever holds it (emergency only): its owner stops, another may run."""
    cron = _service()
    check_key(key)
    if not yes and not _agreed(f"Delete the lock {key}? A job that holds it is cancelled."):
        _complain(f"{key} was left as it is: answer y, or give --yes")
        raise typer.Exit(1)

    async def work() -> bool:
        async with cron.parts.locks as manager:
            return await manager.unlock(key)

    print(f"{key} is free." if _run(work()) else f"{key} was not locked.")


def _agreed(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@app.command()
def token(
    stores: Annotated[str, typer.Option(help="Store ids, comma-separated, or * for all.")] = "",
    scope: Annotated[
        str, typer.Option(help=f"Space-separated, of: {' '.join(SCOPES)}.")
    ] = "notifications:read",
    days: Annotated[float, typer.Option(help="Days until it expires.", min=0.001, max=3660)] = 1.0,
    subject: Annotated[str, typer.Option(help="Whom it is for, in logs.")] = "cli",
) -> None:
    """Print a token signed with SOLOCRON_AUTH_SECRET.

    Clients send it as `Authorization: Bearer <token>`; it cannot be taken back before it expires.
    """
    cron = _service()
    named = [each.strip() for each in stores.split(",") if each.strip()]
    bad = [each for each in named if not is_store_id(each)]
    if not named or (bad and named != ["*"]):
        about = f"has {bad[0][:100]!r}" if bad else "is empty"
        raise ConfigError(f"--stores {about}: give store ids, comma-separated, or '*' for all")
    if not scope.split():
        raise ConfigError(f"--scope is empty: give one or more of {', '.join(SCOPES)}")
    text = cron.parts.authenticator.issue(
        subject=subject, stores=None if named == ["*"] else named, scopes=scope.split(),
        lifetime_s=int(days * 86_400),
    )  # fmt: skip
    print(text)


@stores_app.command("list")
def list_stores(
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 50,
    after: Annotated[str | None, typer.Option(help="Only ids after this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List stores by id."""
    cron = _service()

    async def work() -> list[dict[str, Any]]:
        try:
            stores = await cron.parts.repository.page(after=after, limit=limit)
        finally:
            await cron.parts.database.close()
        return [asdict(each) for each in stores]

    headings = {"id": "id", "name": "name", "timezone": "zone", "hours": "hours",
                "country": "country", "is_open": "open"}  # fmt: skip
    _print(_run(work()), headings, as_json)


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
    cron = _service()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())  # fmt: skip
    silent = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=silent) as bar:
        report = _run(_imported(cron, file, skip_bad, bar))
    for bad in report.bad:
        where = f"line {bad.line}: {bad.field}" if bad.field else f"line {bad.line}"
        print(logs.one_line(f"{where}: {bad.reason}"), file=sys.stderr)
    if report.bad_count > len(report.bad):
        print(f"... and {report.bad_count - len(report.bad)} more bad rows", file=sys.stderr)
    print(f"{report.read} rows read, {report.imported} imported, {report.bad_count} bad.")
    if report.bad_count and not skip_bad:
        print("Nothing was imported: mend the rows, or give --skip-bad.", file=sys.stderr)
        raise typer.Exit(1)


async def _imported(cron: Solocron, file: Path, skip_bad: bool, bar: Progress) -> ImportReport:
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
        if parts.database.dialect == "sqlite":
            await parts.database.migrate()
        return await import_stores(
            parts.database, file, clock=parts.clock, skip_bad=skip_bad, advance=advance
        )
    finally:
        await parts.database.close()


@app.command()
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="A bounded show; exit code 0 if every tick ran once.")
    ] = False,
) -> None:
    """Three workers, a real Redis, a few hundred stores and a fast clock, until Ctrl-C."""
    from solocron.demo.show import show

    raise typer.Exit(_run(show(once=once)))
