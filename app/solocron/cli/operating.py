"""`solocron history`, `explain`, `pause` and `resume`: what a job did and why; to halt it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from solocron import logs
from solocron.cli.console import (
    JsonOption,
    moment,
    print_rows,
    run_to_end,
    service,
    shown_result,
    who,
)
from solocron.cron.silence import state_of
from solocron.cron.values import counts_of, progress_text, value_of
from solocron.cron.wording import SHOWN_ERROR
from solocron.errors import ConfigError, InvalidInput
from solocron.locks.keys import LONGEST_PAUSE_MS

if TYPE_CHECKING:
    from solocron.service import Solocron

_T = TypeVar("_T")

JobArgument = Annotated[str, typer.Argument(help="The job's name, as `jobs` lists it.")]
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def history(
    job: JobArgument,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List a job's last runs, the newest first: when, by whom, how long and how it ended.

    `first begun` is the begin of the first attempt, `ms` how long the last server's attempts took,
    `origin` is schedule, manual or backfill, of which `asked by` says whose, and `without Redis`
    that the database alone decided who runs it. Runs that ended are kept for SOLOCRON_HISTORY
    seconds, the newest of each job always.
    """
    cron = service()

    async def work() -> list[dict[str, Any]]:
        rows = await cron.parts.ledger.history(job, limit)
        if not rows:
            await cron.inquiry.job(job)  # the jobs of other services are in the ledger, too
        return rows

    now_ms = cron.parts.clock.now_ms()
    rows = [_row(row, now_ms) for row in _looked(cron, work)]
    if not as_json:
        rows = [
            {**row, **{name: moment(row[name]) for name in ("tick", "started_at")},
             "counts": shown_result(row["result"]), "progress": progress_text(row["progress"])}
            for row in rows
        ]  # fmt: skip
    headings = {"tick": "tick", "state": "state", "attempt": "attempt", "owner": "owner",
                "started_at": "first begun", "duration_ms": "ms", "progress": "progress",
                "counts": "result", "origin": "origin", "asked_by": "asked by",
                "fallback": "without Redis", "error": "error"}  # fmt: skip
    print_rows(rows, headings, as_json)


def _row(row: Mapping[str, Any], now_ms: float) -> dict[str, Any]:
    names = ("tick", "state", "attempt", "owner", "started_at", "duration_ms", "origin",
             "asked_by", "fallback", "error")  # fmt: skip
    values = {name: value_of(row[name]) for name in ("params", "result", "progress")}
    counts = counts_of(values["result"])
    return {**{name: row[name] for name in names}, "state": state_of(row, now_ms),
            **values, "counts": counts}  # fmt: skip


def explain(
    job: JobArgument,
    tick: Annotated[
        str | None,
        typer.Option(help="ISO 8601, in the job's zone unless it has one, or UTC epoch ms; "
                     "otherwise the newest tick that has come."),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what became of a tick: what each server did with it, why, and what to do about it.

    Works without Redis or without the database, and says so; without both, exit code 3.
    """
    cron = service()
    try:
        told = _looked(cron, lambda: cron.inquiry.explain(job, tick))
    except InvalidInput as error:
        raise ConfigError(f"--{error}") from None
    if as_json:
        print(json.dumps(told))
        return
    _print(told)


def pause(
    job: JobArgument,
    for_: Annotated[
        str, typer.Option("--for", help="Such as 90s, 30m, 2h or 7d; at most 30d.")
    ] = "7d",
    as_json: JsonOption = False,
) -> None:
    """Let no server begin a tick of the job until `resume`, or until the time is over.

    What is running goes on, and `run` runs it by hand. The pause is kept in Redis only: without
    Redis there is none.
    """
    cron = service()
    ttl_ms = _duration_ms(for_)
    by = who()

    async def work() -> int:
        found = await cron.inquiry.job(job)
        return await cron.parts.locks.pause(found.lock_key, ttl_ms=ttl_ms, by=by)

    until = _looked(cron, work)
    if as_json:
        print(json.dumps({"job": job, "until": until, "by": by}))
    else:
        print(f"{job} is paused until {moment(until)}, or until: solocron resume {job}")


def resume(job: JobArgument, as_json: JsonOption = False) -> None:
    """End a job's pause at once. The newest tick that came meanwhile is run, if it is within
    SOLOCRON_CATCH_UP."""
    cron = service()

    async def work() -> bool:
        return await cron.parts.locks.resume((await cron.inquiry.job(job)).lock_key)

    was = _looked(cron, work)
    if as_json:
        print(json.dumps({"job": job, "was_paused": was}))
    else:
        print(f"{job} goes on." if was else f"{job} was not paused.")


def _looked(cron: Solocron, work: Callable[[], Awaitable[_T]]) -> _T:
    """Do what asks Redis and the database, and close both."""

    async def looked() -> _T:
        try:
            async with cron.parts.locks:
                return await work()
        finally:
            await cron.parts.close()

    return run_to_end(looked())


def _print(told: dict[str, Any]) -> None:
    local = "" if told["zone"] == "UTC" else f" ({told['local_time']} in {told['zone']})"
    print(f"{told['job']}, {moment(told['tick'])}{local}")
    _say(f"{told['state']}: {told['text']}", told["remedy"])
    if told["ledger"] is not None:
        _say(f"ledger: {_ledger_text(told['ledger'])}", "")
    for each in told["notes"]:
        _say(f"{each['about']}: {each['text']}", each["remedy"])
    lock, pause = told["lock"], told["pause"]
    if lock is not None:
        gone = ", which gives no sign of life: whoever wants it takes it" if lock["silent"] else ""
        _say(f"lock: held now by {lock['owner']} for {lock['ttl_ms']} ms more{gone}", "")
    if pause is not None:
        by = f" by {pause['by']}" if pause["by"] else ""
        _say(f"pause: until {moment(pause['until'])}{by}", f"solocron resume {told['job']}")
    rows = told["workers"]
    headings = {"worker": "server", "verdict": "verdict", "text": "what it did, and why",
                "remedy": "what to do"}  # fmt: skip
    if rows:
        print_rows(rows, headings, False)
    elif told["redis"] == "up":
        print("No server is known: none told of this tick, and none is up.")


def _ledger_text(run: Mapping[str, Any]) -> str:
    """What the ledger has of a run, but how it went."""
    ended = f", ended {moment(run['finished_at'])}" if run["finished_at"] else ""
    said = [f"begun {moment(run['started_at'])}{ended}"]
    if run["params"]:
        said.append(f"parameters {shown_result(run['params'])}")
    if run["result"] is not None:
        said.append(f"result {shown_result(run['result'])}")
    if run["error"] and len(run["error"]) > SHOWN_ERROR:
        said.append(f"error {run['error']}")
    return "; ".join(said)


def _say(text: str, remedy: str) -> None:
    print(_plain(text))
    if remedy:
        print(f"  -> {_plain(remedy)}")


def _plain(text: str) -> str:
    return logs.one_line(text)


def _duration_ms(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    ms = int(match[1]) * _UNITS_MS[match[2]] if match else 0
    if not 0 < ms <= LONGEST_PAUSE_MS:
        raise ConfigError(f"--for is {text[:40]!r}: give such as 90s, 30m, 2h or 7d, at most 30d")
    return ms
