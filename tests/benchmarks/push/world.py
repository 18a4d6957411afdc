"""What the servers of a benchmark work on, and the bytes that its clients must get."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from conftest import RedisServer
from faults.campaign.postgres import Postgres
from solocron.clock import SystemClock
from solocron.notifications.client import text_frame
from solocron.notifications.event import STORE_CLOSED, cloud_event
from solocron.notifications.hub import subscribed
from solocron.storage.engine import Database
from solocron.storage.outbox import Notification
from solocron.web.auth import Authenticator
from workers import NEVER

EVERYBODY = "everybody"  # a store without notifications in the table
SEEN, HEAD = 2, 12  # a client that comes back has seen so many of its store's notifications
_SECRET = "benchmark" * 4
_CREATED_MS = 1_800_000_000_000
_DATA = {"name": "Berlin Mitte", "from": "open", "to": "closed"}


def payloads(first: int, count: int, size: int) -> list[bytes]:
    """Messages of `size` bytes, numbered."""
    return [
        json.dumps({"seq": seq, "pad": ""}).encode()[:-2].ljust(size - 2, b".") + b'"}'
        for seq in range(first, first + count)
    ]


def frames(messages: Sequence[bytes]) -> bytes:
    """What a client gets of these messages."""
    return b"".join(map(text_frame, messages))


def store_of(number: int) -> str:
    """The store of a client."""
    return f"store-{number:05d}"


def answer(store: str, head: int) -> bytes:
    """What a subscription of a store is answered with."""
    return subscribed({store: {"seq": head, "recovered": True}})


def missed(store: str, seq: int | None) -> Iterator[bytes]:
    """What a client of the store gets that has seen `seq` (None: that wants only new ones)."""
    yield answer(store, HEAD)
    for each in range(HEAD if seq is None else seq, HEAD):
        yield cloud_event(Notification(store, each + 1, STORE_CLOSED, _DATA, _CREATED_MS))


@dataclass(frozen=True)
class World:
    """A Redis, and a PostgreSQL with stores: the environment of a service that uses them."""

    environment: Mapping[str, str]

    def token(self, number: int, store: str) -> str:
        """A token of client `number`, for one store."""
        authenticator = Authenticator(clock=SystemClock(), secret=_SECRET)
        return authenticator.issue(
            subject=f"client-{number}", stores=[store], scopes=["notifications:read"],
            lifetime_s=86_400,
        )  # fmt: skip


@contextmanager
def world(stores: int) -> Iterator[World]:
    """The world, with so many stores of `HEAD` notifications each, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="push-", ignore_cleanup_errors=True) as folder:
        redis, postgres = RedisServer(Path(folder)), Postgres(Path(folder))
        try:
            redis.start()
            asyncio.run(_prepare(postgres, stores))
            settings = {
                "port": "0", "auth_secret": _SECRET, "heartbeat": "600",  # no pings in between
                "store_auto_close_schedule": NEVER, "store_open_reminder_schedule": NEVER,
            }  # fmt: skip
            variables = {f"SOLOCRON_{name.upper()}": value for name, value in settings.items()}
            yield World({"REDIS_URL": redis.url, "DATABASE_URL": postgres.url, **variables})
        finally:
            asyncio.run(postgres.stop())
            redis.stop()


async def _prepare(postgres: Postgres, count: int) -> None:
    await postgres.start()
    database = Database(postgres.url)
    await database.migrate()
    stores = (
        "INSERT INTO stores (id, name, timezone, hours, updated_at) "
        "SELECT 'store-' || lpad(n::text, 5, '0'), 'a store', 'UTC', '24/7', 0 "
        "FROM generate_series(0, :count - 1) n UNION ALL "
        "SELECT :everybody, 'everybody', 'UTC', '24/7', 0"
    )
    states = (
        "INSERT INTO store_states (store_id, notification_seq) "
        "SELECT 'store-' || lpad(n::text, 5, '0'), :head FROM generate_series(0, :count - 1) n"
    )
    told = (
        "INSERT INTO notifications (store_id, seq, type, data, created_at, published_at, feed) "
        "SELECT 'store-' || lpad(n::text, 5, '0'), seq, :type, :data, :created, :created, "
        "n * :head + seq FROM generate_series(0, :count - 1) n, generate_series(1, :head) seq"
    )
    values = {"count": count, "head": HEAD, "everybody": EVERYBODY, "type": STORE_CLOSED,
              "data": json.dumps(_DATA), "created": _CREATED_MS}  # fmt: skip
    async with database.begin() as connection:
        for statement in (
            stores,
            states,
            told,
            "UPDATE feed SET position = (SELECT count(*) FROM notifications)",
        ):
            wanted = {name: each for name, each in values.items() if f":{name}" in statement}
            await connection.execute(text(statement), wanted)
    async with database.connect() as connection:
        await connection.execute(text("ANALYZE"))
    await database.close()
