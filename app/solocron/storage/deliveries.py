"""Deliveries: a row per notification and channel (an email or SMS URL), claimed before it is sent.

A row is written in the transaction of its notification (`outbox.append`). Each claim counts an
attempt, and what came of it is written only while that attempt is the current one: a sender whose
claim ended meanwhile changes nothing. Claims are judged by the database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, and_, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage.engine import Database, database_now
from solocron.storage.outbox import Notification, notification
from solocron.storage.tables import deliveries, notifications, stores

_MAX_ERROR = 500


@dataclass(frozen=True)
class Delivery:
    """A claimed delivery: the `attempt`-th of sending `notification` on `channel`, and what the
    store's row says now."""

    channel: str
    attempt: int
    notification: Notification
    name: str
    timezone: str
    contact: str


@dataclass(frozen=True)
class DeliveryStatus:
    """How many deliveries of a channel wait or are being sent, were sent, were given up (the dead
    letters), and concerned a store without a fitting contact."""

    pending: int = 0
    sent: int = 0
    dead: int = 0
    skipped: int = 0


class Deliveries:
    """The table. Every method may raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, channel: str, *, owner: str, limit: int, lease_ms: int) -> list[Delivery]:
        """Take up to `limit` due deliveries for `lease_ms`; nobody else gets them before that."""
        now = select(database_now()).scalar_subquery()  # asked once, so that the index serves
        due = and_(deliveries.c.channel == channel, deliveries.c.due_at <= now)
        peek = select(deliveries.c.seq).where(due).order_by(deliveries.c.due_at).limit(1)
        async with self._database.connect() as connection:  # idle rounds write nothing
            if (await connection.execute(peek)).first() is None:
                return []
        query = (
            select(
                deliveries.c.channel, (deliveries.c.attempts + 1).label("attempt"),
                notifications, stores.c.name, stores.c.timezone, stores.c.contact,
            )
            .select_from(deliveries.join(notifications).join(stores))
            .where(due)
            .order_by(deliveries.c.due_at)
            .limit(limit)
            .with_for_update(of=deliveries, skip_locked=True)
        )  # fmt: skip
        async with self._database.begin() as connection:
            rows = (await connection.execute(query)).all()
            if rows:
                await _mark_claimed(connection, rows, owner, lease_ms)
        return [_delivery(row) for row in rows]

    async def finish(
        self,
        delivery: Delivery,
        state: Literal["sent", "dead", "skipped"],
        error: str | None = None,
    ) -> bool:
        """Write how it ended; False when the claim is no longer ours."""
        return await self._write(
            delivery,
            {"state": state, "due_at": None, "finished_at": database_now(), "last_error": error},
        )

    async def retry(self, delivery: Delivery, delay_ms: int, error: str) -> bool:
        """Let it be tried again in `delay_ms`; False when the claim is no longer ours."""
        due_at = database_now() + delay_ms
        return await self._write(
            delivery, {"state": "pending", "due_at": due_at, "last_error": error}
        )

    async def _write(self, delivery: Delivery, values: dict[str, Any]) -> bool:
        if values["last_error"] is not None:
            values["last_error"] = values["last_error"][:_MAX_ERROR]
        note = delivery.notification
        ours = and_(
            _is(delivery.channel, note.store_id, note.seq),
            deliveries.c.attempts == delivery.attempt,
            deliveries.c.state == "sending",
        )
        async with self._database.begin() as connection:
            done = await connection.execute(update(deliveries).where(ours).values(values))
            return bool(done.rowcount)

    async def counts(self) -> dict[str, DeliveryStatus]:
        """The counts of each channel that has a row. Reads the whole table: for `status`."""
        query = select(deliveries.c.channel, deliveries.c.state, func.count()).group_by(
            deliveries.c.channel, deliveries.c.state
        )
        found: dict[str, dict[str, int]] = {}
        async with self._database.connect() as connection:
            for channel, state, count in await connection.execute(query):
                states = found.setdefault(channel, {})
                key = "pending" if state == "sending" else state
                states[key] = states.get(key, 0) + count
        return {channel: DeliveryStatus(**states) for channel, states in sorted(found.items())}


async def _mark_claimed(
    connection: AsyncConnection, rows: Sequence[Row[Any]], owner: str, lease_ms: int
) -> None:
    change = (
        update(deliveries)
        .where(_is(bindparam("of_channel"), bindparam("of_store"), bindparam("of_seq")))
        .values(
            state="sending", attempts=deliveries.c.attempts + 1, owner=owner[:200],
            due_at=database_now() + lease_ms,
        )
    )  # fmt: skip
    keys = [
        {"of_channel": row.channel, "of_store": row.store_id, "of_seq": row.seq} for row in rows
    ]
    await connection.execute(change, keys)


def _is(channel: Any, store_id: Any, seq: Any) -> ColumnElement[bool]:
    return and_(
        deliveries.c.store_id == store_id,
        deliveries.c.seq == seq,
        deliveries.c.channel == channel,
    )


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        row.channel, row.attempt, notification(row), row.name, row.timezone, row.contact
    )
