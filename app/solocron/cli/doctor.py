"""`solocron doctor`: what is wrong with a deployment, or will be, and what to do about it."""

from __future__ import annotations

import json
from typing import Any

import typer

from solocron.cli.console import JsonOption, print_rows, run_to_end, service


def doctor(as_json: JsonOption = False) -> None:
    """Look at Redis, the database, the servers and the settings, and say what is wrong and what
    to do about it.

    Exit code 0: nothing is wrong; 1: something needs attention (an error or a warning); 3: Redis
    or the database is not reachable, or not migrated.
    """
    from solocron.cli.examining import examine

    cron = service()

    async def work() -> dict[str, Any]:
        try:
            async with cron.parts.locks:
                return await examine(cron)
        finally:
            await cron.parts.close()

    told = run_to_end(work())
    if as_json:
        print(json.dumps(told))
    else:
        print(f"redis: {told['redis']}   database: {told['database']}")
        if told["findings"]:
            headings = {"severity": "severity", "about": "about", "text": "what is wrong",
                        "remedy": "what to do"}  # fmt: skip
            print_rows(told["findings"], headings, False)
        else:
            print("Nothing is wrong.")
    if "down" in (told["redis"], told["database"]):
        raise typer.Exit(3)
    if any(each["severity"] != "note" for each in told["findings"]):
        raise typer.Exit(1)
