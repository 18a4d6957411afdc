"""The notification side of a server without its web, and the commits it is to tell of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy import insert, update

from solocron.clock import SystemClock
from solocron.notifications.fanout import Fanout
from solocron.notifications.hub import Hub
from solocron.notifications.relay import Relay
from solocron.storage import outbox as rows
from solocron.storage.counters import next_seqs
from solocron.storage.engine import Database
from solocron.storage.outbox import Notification, Outbox
from solocron.storage.tables import store_states, stores
from solocron.stores.table import StoreTable
from solocron.tracing import Tracer


class Server:
    """The notification side of one server, which asks the table unasked each `audit_s`."""

    def __init__(
        self, database: Database, redis_url: str, *, audit_s: float = 1.0,
        tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        self.outbox = Outbox(database, StoreTable().on(database).get_many)
        self.fanout = Fanout(redis_url, environment="", clock=SystemClock(), deadline_s=0.5)
        self.hub = Hub(self.outbox, self.fanout, poll_s=0.1, audit_s=audit_s)
        self.relay = Relay(
            self.outbox, self.fanout, self.hub, SystemClock(), sweep_s=0.2, tracer=tracer
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self.fanout.run(self.hub.deliver, self.hub.resync, self.hub.nudged)
                ),
                group.create_task(self.hub.run()),
                group.create_task(self.relay.run()),
            ]
            yield self
            for task in tasks:
                task.cancel()

    async def up(self, state: bool = True) -> None:
        async with asyncio.timeout(15):
            while self.fanout.is_up is not state:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def pair(database: Database, redis_url: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers that share a database and Redis, both subscribed."""
    async with (
        Server(database, redis_url).running() as one,
        Server(database, redis_url).running() as other,
    ):
        await asyncio.gather(one.up(), other.up())
        yield one, other


@asynccontextmanager
async def with_stores(url: str, *names: str) -> AsyncIterator[Database]:
    """A migrated database with these stores."""
    database = Database(url)
    await database.migrate()
    async with database.begin() as connection:
        for name in names:
            await connection.execute(
                insert(stores).values(
                    id=name, name=name, timezone="UTC", hours="24/7", updated_at=0
                )
            )
    yield database
    await database.close()


class Commit:
    """Commits the next `count` notifications of a store, made `age_ms` ago, to be delivered on
    `channels` besides; each has so much `padding`, in bytes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(
        self, store: str, count: int = 1, age_ms: int = 0, channels: Sequence[str] = (),
        padding: int = 0,
    ) -> list[Notification]:  # fmt: skip
        now = int(SystemClock().now_ms()) - age_ms
        async with self._database.begin() as connection:
            first = (await next_seqs(connection, [store]))[store]
            change = update(store_states).where(store_states.c.store_id == store)
            await connection.execute(change.values(notification_seq=first + count - 1))
            fresh = [
                Notification(store, seq, "store.closed", {"name": store + " " * padding}, now)
                for seq in range(first, first + count)
            ]
            await rows.append(connection, fresh, channels)
        return fresh
