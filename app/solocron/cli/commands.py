"""The commands, but for those of `solocron stores`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solocron.cli.console import (
    JsonOption,
    agreed,
    complain,
    moment,
    print_rows,
    run_to_end,
    service,
    shown_result,
    who,
)
from solocron.cron.values import progress_text, read_pairs
from solocron.errors import ConfigError
from solocron.locks.keys import check_key
from solocron.version import __version__
from solocron.web.scopes import SCOPES, STORE_SCOPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from solocron.cron.job import Job
    from solocron.cron.outcome import Outcome

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Cron jobs that run once, however many servers run them. Settings come from the "
    "environment: REDIS_URL, DATABASE_URL and SOLOCRON_*; see the README.",
)  # fmt: skip
# What a job that was not run is told for; the reasons are the runner's.
_SKIPPED = {
    "held": "another server is running it",
    "done": "it has run already",
    "paused": "it is paused",
    "redis-down": "Redis is not reachable, and SOLOCRON_ON_REDIS_DOWN is skip",
    "database-down": "the database cannot be used",
}


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"solocron {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What comes before a command."""


@app.command()
def serve() -> None:
    """Run the jobs and the WebSocket server until SIGTERM or SIGINT (Ctrl-C).

    On the first signal no new tick begins, running jobs finish within SOLOCRON_GRACE seconds or
    are handed over, and sockets are closed with 1001. A second signal stops at once.
    """
    from solocron.serving import serve_until_signalled

    run_to_end(serve_until_signalled(service(working=True)))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this release's. Safe to run on several servers at once."""
    cron = service()

    async def work() -> None:
        try:
            await cron.parts.database.migrate()
        finally:
            await cron.parts.close()

    run_to_end(work())
    print("The database is migrated.")


@app.command()
def jobs(as_json: JsonOption = False) -> None:
    """List the jobs with their schedules and next ticks.

    Those of the fleet whose code is not here are listed by what its servers tell of them.
    """
    cron = service()
    now = cron.parts.clock.now_ms()

    async def work() -> Mapping[str, Job]:
        try:
            return (await cron.inquiry.fleet())[0]
        finally:
            await cron.parts.close()

    others = run_to_end(work())
    told = ("delay_s", "ttl_s", "overlap", "catch_up", "params")
    rows = [
        {
            "job": job.name,
            "schedule": job.calendar.expression,
            "zone": job.calendar.zone,
            "next_tick": moment(job.calendar.next_after(now)),
            "delay_s": job.delay_ms / 1000,
            "ttl_s": job.ttl_ms // 1000,
            "overlap": job.overlap,
            "catch_up": job.catch_up,
            "params": dict(job.params),
            "lock_key": job.lock_key,
            "here": True,
        }
        for job in (*cron.jobs.values(), *others.values())
    ]
    for row in rows:
        if row["job"] in others:
            row.update(dict.fromkeys(told), here=False)
    headings = {"job": "job", "schedule": "schedule", "zone": "zone", "next_tick": "next tick",
                "delay_s": "delay s", "ttl_s": "TTL s", "overlap": "overlap",
                "catch_up": "catch-up", "lock_key": "lock key"}  # fmt: skip
    print_rows(rows, headings, as_json)
    if not as_json:
        _say_others(list(others))


def _say_others(names: list[str]) -> None:
    if names:
        its = "its code" if len(names) == 1 else "their code"
        print(f"this fleet also runs: {', '.join(names)} (name {its} in SOLOCRON_APP to run "
              f"{'it' if len(names) == 1 else 'them'} from here)")  # fmt: skip


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="The job's name, as `jobs` lists it.")],
    param: Annotated[
        list[str] | None,
        typer.Option(help="key=value, of the job's parameters: a JSON value, or text."),
    ] = None,
) -> None:
    """Run a job now, once, unless a server is running it. Exit code 0 only if it succeeded.

    Ctrl-C cancels the run. Its lock is freed at once.
    """
    cron = service(working=True)

    async def work() -> Outcome:
        try:
            found = await cron.inquiry.own_job(job)
            params = read_pairs(job, found.params, param or ())
            async with cron.parts.locks:
                return await cron.run_job(job, params, by=who())
        finally:
            await cron.parts.close()

    outcome = run_to_end(work())
    if outcome.state == "succeeded":
        told = shown_result(outcome.result)
        print(f"{job}: succeeded in {outcome.duration_ms} ms" + (f": {told}" if told else ""))
        return
    reason = outcome.reason or ""
    reason = _SKIPPED.get(reason, reason) if outcome.state == "skipped" else reason
    detail = f": {outcome.detail}" if outcome.detail else ""
    complain(f"{job}: {outcome.state}: {reason}{detail}")
    raise typer.Exit(3 if outcome.state == "skipped" else 1)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show Redis, the database, and each job's lock and last run.

    Exit code 3 if Redis or the database is down, or the database is not migrated.
    """
    cron = service()
    parts = cron.parts

    async def work() -> dict[str, Any]:
        try:
            async with parts.locks:
                return await cron.status()
        finally:
            await parts.close()

    state = run_to_end(work())
    if as_json:
        print(json.dumps(state, default=str))
    else:
        print(f"redis: {state['redis']}   database: {state['database']}")
        ticks = ("next_tick", "last_tick")
        rows = [
            {
                **each,
                **{k: moment(each[k]) for k in ticks},
                "paused": _paused(each),
                "progress": progress_text(each["progress"]),
            }
            for each in state["jobs"]
        ]
        headings = {"job": "job", "next_tick": "next tick", "owner": "lock held by",
                    "paused": "paused", "last_tick": "last tick", "state": "state",
                    "progress": "progress", "attempt": "attempt", "duration_ms": "ms",
                    "error": "error"}  # fmt: skip
        print_rows(rows, headings, False)
        _say_others([each["job"] for each in state["jobs"] if not each["here"]])
        if state["servers_up"] == 0:
            print("no server is up: nothing runs")
        if state["deliveries"]:
            headings = {each: each for each in ("channel", "pending", "sent", "dead", "skipped")}
            print_rows(state["deliveries"], headings, False)
    for problem in state["problems"]:
        complain(problem)
    if state["problems"]:
        raise typer.Exit(3)


def _paused(job: dict[str, Any]) -> Any:
    """Until when, and by whom; otherwise only whether."""
    if not job["paused"]:
        return job["paused"]
    by = f" by {job['paused_by']}" if job["paused_by"] else ""
    return f"until {moment(job['paused_until'])}{by}"


@app.command()
def locks(as_json: JsonOption = False) -> None:
    """List the locks held now, with their owners and remaining TTL."""
    cron = service()

    async def work() -> list[dict[str, Any]]:
        async with cron.parts.locks as manager:
            return await manager.locks()

    print_rows(run_to_end(work()), {"key": "key", "owner": "owner", "ttl_ms": "TTL ms"}, as_json)


@app.command()
def unlock(
    key: Annotated[str, typer.Argument(help="The lock key, such as cron:store-auto-close.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a lock, whoever holds it (emergency only): its owner stops, another may run."""
    cron = service()
    check_key(key)
    if not yes and not agreed(f"Delete the lock {key}? A job that holds it is cancelled."):
        complain(f"{key} was left as it is: answer y, or give --yes")
        raise typer.Exit(1)

    async def work() -> bool:
        async with cron.parts.locks as manager:
            return await manager.unlock(key)

    print(f"{key} is free." if run_to_end(work()) else f"{key} was not locked.")


@app.command()
def token(
    stores: Annotated[
        str | None,
        typer.Option(
            help="Store ids, comma-separated, or * for all; without "
            f"{' and '.join(STORE_SCOPES)} none are needed."
        ),
    ] = None,
    scope: Annotated[
        str, typer.Option(help=f"Space-separated, of: {' '.join(SCOPES)}.")
    ] = "notifications:read",
    days: Annotated[float, typer.Option(help="Days until it expires.", min=0.001, max=3660)] = 1.0,
    subject: Annotated[str, typer.Option(help="Whom it is for, in logs.")] = "cli",
) -> None:
    """Print a token signed with SOLOCRON_AUTH_SECRET.

    Clients send it as `Authorization: Bearer <token>`; it cannot be taken back before it expires.
    """
    cron = service()
    scopes = scope.split()
    if not scopes:
        raise ConfigError(f"--scope is empty: give one or more of {', '.join(SCOPES)}")
    needs_stores = any(each in STORE_SCOPES for each in scopes)
    named = [] if stores is None and not needs_stores else _stores_named(stores or "")
    text = cron.parts.authenticator.issue(
        subject=subject, stores=None if named == ["*"] else named, scopes=scopes,
        lifetime_s=int(days * 86_400),
    )  # fmt: skip
    print(text)


def _stores_named(stores: str) -> list[str]:
    from solocron.stores.model import is_store_id

    named = [each.strip() for each in stores.split(",") if each.strip()]
    bad = [each for each in named if not is_store_id(each)]
    if not named or (bad and named != ["*"]):
        about = f"has {bad[0][:100]!r}" if bad else "is empty"
        raise ConfigError(f"--stores {about}: give store ids, comma-separated, or '*' for all")
    return named


@app.command()
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="A bounded show; exit code 0 if every tick ran once.")
    ] = False,
    real_time: Annotated[
        bool,
        typer.Option("--real-time", help="This machine's clock, and jobs every few seconds: to "
                     "look at it by `explain`, `doctor` and the like from another terminal."),
    ] = False,
    failing_job: Annotated[
        bool, typer.Option("--failing-job", help="One more job, which fails until it is mended.")
    ] = False,
) -> None:  # fmt: skip
    """Three workers, a real Redis, a few hundred stores and a fast clock, until Ctrl-C.

    It says what to kill, and how to look at it.
    """
    from solocron.demo.show import show

    raise typer.Exit(run_to_end(show(once=once, real_time=real_time, failing_job=failing_job)))
