"""The counters of the stores: each number is taken once, in order, also after a migration."""

from __future__ import annotations

import asyncio

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage import migrate
from solocron.storage.counters import newest_seqs, next_seqs, next_seqs_unreminded
from solocron.storage.engine import Database

_BEFORE = (
    "INSERT INTO stores (id, name, timezone, hours, updated_at, notification_seq, "
    "last_reminded_tick) VALUES ('a', 'A', 'UTC', '24/7', 0, 2, 17), ('b', 'B', 'UTC', '24/7', 0, "
    "0, NULL)",
    "INSERT INTO notifications (store_id, seq, type, data, created_at, feed) VALUES "
    "('a', 1, 'store.closed', '{}', 5, 1), ('a', 2, 'store.opened', '{}', 6, NULL)",
    "INSERT INTO deliveries (store_id, seq, channel, state, due_at) VALUES "
    "('a', 1, 'ops', 'sent', NULL), ('a', 2, 'ops', 'pending', 7)",
)


@pytest.fixture
async def before(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database of the release before, with two notifications."""

    async def upgrade(connection: AsyncConnection) -> None:
        await connection.run_sync(older)

    def older(connection: Connection) -> None:
        config: Config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0007")
        for statement in _BEFORE:
            connection.execute(text(statement))

    database = Database(database_url)
    with monkeypatch.context() as patched:
        patched.setattr("solocron.storage.engine.upgrade", upgrade)
        await database.migrate()
    return database


async def test_what_was_counted_told_and_delivered_stays(before: Database) -> None:
    await before.migrate()
    async with before.begin() as connection:
        assert await newest_seqs(connection, ["a", "b"]) == {"a": 2}
        told = await connection.execute(text("SELECT seq, feed FROM notifications ORDER BY seq"))
        assert [tuple(row) for row in told] == [(1, 1), (2, None)]
        sent = await connection.execute(text("SELECT seq, state FROM deliveries ORDER BY seq"))
        assert [tuple(row) for row in sent] == [(1, "sent"), (2, "pending")]
        assert await next_seqs_unreminded(connection, ["a"], 17) == {}
        assert await next_seqs_unreminded(connection, ["a", "b"], 18) == {"a": 3, "b": 1}
        await connection.execute(text("DELETE FROM notifications WHERE seq = 2"))
        kept = await connection.execute(text("SELECT seq FROM deliveries"))
        assert [tuple(row) for row in kept] == [(1,)]  # the deliveries refer to it as before
    await before.close()


async def test_many_at_once_take_each_number_once(database: Database) -> None:
    taken: list[int] = []

    async def take(*stores: str) -> None:
        async with database.begin() as connection:
            found = await next_seqs(connection, stores)
            await asyncio.sleep(0)
            taken.append(found["a"])

    await asyncio.gather(*(take("a", "b") if n % 2 else take("b", "a") for n in range(30)))
    assert sorted(taken) == list(range(1, 31))
    assert taken == sorted(taken)  # in the order of their commits, within this process


async def test_what_is_rolled_back_leaves_no_gap(database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.begin() as connection:
            assert await next_seqs(connection, ["a"]) == {"a": 1}
            raise RuntimeError
    async with database.begin() as connection:
        assert await next_seqs(connection, ["a"]) == {"a": 1}
