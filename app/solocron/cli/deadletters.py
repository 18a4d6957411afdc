"""`solocron deadletters`: look at the deliveries that were given up, and have them sent again."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solocron.cli.console import JsonOption, moment, print_rows, run_to_end, service
from solocron.errors import ConfigError

if TYPE_CHECKING:
    from solocron.service import Solocron

_SHOWN = 50


def deadletters(
    channel: Annotated[
        str | None, typer.Option(help="Only of this channel, by its name in `status`.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Only of the store with this id.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"How many; {_SHOWN} are listed, all retried.", min=1, max=1_000_000),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Have them sent again, with as many attempts.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the emails, SMS and the like that were given up, the newest first; or have them sent
    again, which the running servers begin within seconds.

    Servers give up after SOLOCRON_NOTIFY_ATTEMPTS attempts. Interrupted, --retry leaves the rest
    as they are.
    """
    from solocron.stores.model import is_store_id

    if store is not None and not is_store_id(store):
        raise ConfigError(f"--store has {store[:100]!r}: give a store's id")
    cron = service()
    which = {"channel": channel, "store_id": store}

    async def work() -> Any:
        deliveries = cron.parts.deliveries
        try:
            if channel is not None:
                await _check_channel(cron, channel)
            if retry:
                return await deliveries.revive(**which, limit=limit)
            return await deliveries.dead(**which, limit=limit or _SHOWN)
        finally:
            await cron.parts.close()

    found = run_to_end(work())
    if retry:
        print(json.dumps({"retried": found}) if as_json else f"{found} wait to be sent again.")
        return
    rows = [asdict(each) for each in found]
    if not as_json:
        rows = [{**row, "given_up_at": moment(row["given_up_at"])} for row in rows]
    headings = {"given_up_at": "given up", "channel": "channel", "store_id": "store", "seq": "seq",
                "type": "type", "attempts": "attempts", "error": "last error"}  # fmt: skip
    print_rows(rows, headings, as_json)


async def _check_channel(cron: Solocron, channel: str) -> None:
    known = [each["channel"] for each in await cron.parts.channels.status()]
    if channel not in known:
        remedy = f"use one of {', '.join(known)}" if known else "there is none yet"
        raise ConfigError(f"--channel {channel[:100]!r} has no delivery and no URL: {remedy}")
