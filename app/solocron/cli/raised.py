"""`solocron alerts`: what somebody should look at, as the servers raised it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from solocron.cli.console import JsonOption, complain, moment, print_rows, run_to_end, service

if TYPE_CHECKING:
    from solocron.alerts.fleet import View

_UNKNOWN = "what was raised while {} was away is not known"


def alerts(as_json: JsonOption = False) -> None:
    """List the alerts that are raised now, the oldest first: since when, of which job or server.

    Servers raise them and find that they are over. Exit code 0 also if there are some; 3 if
    neither Redis nor the database can be asked.
    """
    cron = service()

    async def work() -> View:
        try:
            return await cron.parts.alerts.view()
        finally:
            await cron.parts.close()

    view = run_to_end(work())
    missing = _missing(view, has_database=cron.parts.stored is not None)
    for each in missing:
        complain(each)
    if not (view.redis or (view.database and cron.parts.stored is not None)):
        raise typer.Exit(3)
    found = sorted(view.raised, key=lambda each: each.began_ms)
    rows = [
        {"alert": each.name, "job": each.job, "severity": each.severity,
         "since": each.began_ms if as_json else moment(each.began_ms), "detail": each.text}
        for each in found
    ]  # fmt: skip
    if not rows and not as_json:
        print("No alert is raised" + (", as far as is known." if missing else "."))
        return
    headings = {"alert": "alert", "job": "job, or server", "severity": "severity",
                "since": "since", "detail": "what it is"}  # fmt: skip
    print_rows(rows, headings, as_json)


def _missing(view: View, *, has_database: bool) -> list[str]:
    """What did not answer, and what is not known for that."""
    if has_database and not (view.redis or view.database):
        return ["neither Redis nor the database answers: no alert is known"]
    if not view.redis:
        told = _UNKNOWN.format("the database") if has_database else "no alert is known"
        return [f"Redis does not answer: {told}"]
    if not view.database:
        return [f"the database does not answer: {_UNKNOWN.format('Redis')}"]
    return []
