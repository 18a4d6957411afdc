"""A process that delivers on channels until it is killed: `sender.py DATABASE_URL URL...`."""

from __future__ import annotations

import asyncio
import sys

from solocron.clock import SystemClock
from solocron.notifications.channels import Channels, Policy
from solocron.notifications.senders import channels_of
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.stores.table import StoreTable


async def main(database: str, *urls: str) -> None:
    stores = Database(database)
    policy = Policy(claim_s=1.0, poll_s=0.1, at_once=1)
    await Channels(
        Deliveries(stores, StoreTable().on(stores).get_many), channels_of(urls),
        owner="to be killed", clock=SystemClock(), policy=policy,
    ).run()  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
