"""Channels under test, what they are told of, and what became of it in the table."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select

from shops import own_stores
from solocron.clock import SystemClock
from solocron.notifications.channels import Channels, Policy
from solocron.notifications.senders import channels_of
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.tables import deliveries
from solocron.stores.model import Store
from solocron.stores.table import StoreTable
from workers import until

QUICK = Policy(first_retry_s=0.02, last_retry_s=0.1, poll_s=0.05, grace_s=5)
CLOCK = SystemClock()


def channels(
    database: Database, urls: Sequence[str], policy: Policy = QUICK, deadline_s: float = 20
) -> Channels:
    return Channels(
        Deliveries(database, StoreTable().on(database).get_many),
        channels_of(urls, deadline_s=deadline_s),
        owner="test", clock=CLOCK, policy=policy,
    )  # fmt: skip


@asynccontextmanager
async def running(*workers: Channels) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in workers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def tell(
    database: Database, urls: Sequence[str], *names: str, contact: str = ""
) -> list[str]:
    """Open each of the stores, and with that notify of it; the Message-IDs' beginnings."""
    ids = channels(database, urls).ids
    stores, now = own_stores(database, ids), int(CLOCK.now_ms())
    for name in names:
        await stores.put(Store(name, f"Shop {name}", "UTC", "24/7", contact=contact), now)
        await stores.set_open(name, True, now)
    return [f"<{name}.1.{ids[0]}." for name in names]


async def rows(database: Database) -> list[Any]:
    async with database.connect() as connection:
        query = select(deliveries).order_by(deliveries.c.channel, deliveries.c.store_id)
        return list(await connection.execute(query))


async def states(database: Database) -> Counter[str]:
    return Counter(row.state for row in await rows(database))


async def all_are(database: Database, **expected: int) -> None:
    """Wait until the deliveries are in those states, and no others."""

    async def reached() -> bool:
        return await states(database) == Counter(expected)

    await until(reached)


async def has(taken: list[Any], count: int) -> bool:
    return len(taken) >= count
