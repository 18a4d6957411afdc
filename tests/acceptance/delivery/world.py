"""The stores of the trial: told to begin and to cease, and read when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import func, insert, select, update

from acceptance.delivery.plan import store_ids
from acceptance.delivery.record import digest
from solocron.notifications.event import cloud_event
from solocron.storage.engine import Database
from solocron.storage.feed import EVERY
from solocron.storage.outbox import notification
from solocron.storage.tables import notifications, store_states, stores

EVERY_TICK = "* * * * * *"  # of the real reminder job: one notification of each closed store


async def prepare(database: Database, count: int) -> None:
    """Migrate, and add stores that are open: nobody is reminded of them."""
    await database.migrate()
    row = {"timezone": "UTC", "hours": "24/7", "is_open": True, "updated_at": 0}
    async with database.begin() as connection:
        for each in store_ids(count):
            await connection.execute(insert(stores).values(id=each, name=each, **row))


async def remind(database: Database, go_on: bool) -> None:
    """From now on each tick reminds every store, or none: it waits for the tick under way."""
    async with database.begin() as connection:
        locked = select(stores.c.id).order_by(stores.c.id).with_for_update()
        await connection.execute(locked)
        await connection.execute(update(stores).values(is_open=not go_on))


async def written(database: Database) -> int:
    """How many notifications there are."""
    async with database.connect() as connection:
        query = select(func.sum(store_states.c.notification_seq))
        return int((await connection.execute(query)).scalar_one() or 0)


async def unpublished(database: Database) -> int:
    """How many of them no relay has published."""
    async with database.connect() as connection:
        query = select(func.count()).where(notifications.c.published_at.is_(None))
        return int((await connection.execute(query)).scalar_one())


@dataclass(frozen=True)
class Table:
    """What the table has when nothing is written any more. Of each store, and of EVERY: the
    seqs, and the checksum of its events."""

    seqs: Mapping[str, list[int]]
    sums: Mapping[str, int]


async def read(database: Database) -> Table:
    """All of the table."""
    by_store = select(notifications).order_by(notifications.c.store_id, notifications.c.seq)
    by_feed = select(notifications).order_by(notifications.c.feed)
    async with database.connect(within_s=None) as connection:
        rows = [notification(row) for row in await connection.execute(by_store)]
        feed = [notification(row, feed=row.feed) for row in await connection.execute(by_feed)]
    seqs = {EVERY: [each.feed or 0 for each in feed]}
    sums = {EVERY: digest(map(cloud_event, feed))}
    for store_id, group in groupby(rows, key=lambda row: row.store_id):
        mine = list(group)
        seqs[store_id] = [each.seq for each in mine]
        sums[store_id] = digest(map(cloud_event, mine))
    return Table(seqs, sums)
