"""Deliveries: a row per notification and channel (an email or SMS URL), claimed before it is sent.

A row is written in the transaction of its notification (`outbox.append`). Each claim counts an
attempt, and what came of it is written only while that attempt is the current one: a sender whose
claim ended meanwhile changes nothing. Claims are judged by the database's clock.

What was given up after the last attempt is a dead letter. It stays, with its error, as long as its
notification does, and can be made to wait again. Its attempts are counted anew then: by the claim's
owner a sender of before is told apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sqlalchemy import ColumnElement, Row, and_, bindparam, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage.engine import Database, database_now
from solocron.storage.outbox import Notification, notification
from solocron.storage.tables import deliveries, notifications

_MAX_ERROR = 500
_BATCH = 500


class Recipient(Protocol):
    """What is asked of a store that is told of."""

    @property
    def name(self) -> str: ...

    @property
    def timezone(self) -> str: ...

    @property
    def contact(self) -> str: ...


Recipients = Callable[[Collection[str]], Awaitable[Mapping[str, Recipient]]]


@dataclass(frozen=True)
class Delivery:
    """A claimed delivery: the `attempt`-th of sending `notification` on `channel`, by `owner`, and
    what is known of the store now ('' of one that is no more)."""

    channel: str
    attempt: int
    owner: str
    notification: Notification
    name: str
    timezone: str
    contact: str


@dataclass(frozen=True)
class DeadLetter:
    """A delivery that was given up at `given_up_at` (UTC epoch ms). `error` is of its last attempt,
    without secrets."""

    channel: str
    store_id: str
    seq: int
    type: str
    attempts: int
    error: str | None
    given_up_at: int


@dataclass(frozen=True)
class DeliveryStatus:
    """How many deliveries of a channel wait or are being sent, were sent, were given up (the dead
    letters), and concerned a store without a fitting contact."""

    pending: int = 0
    sent: int = 0
    dead: int = 0
    skipped: int = 0


class Deliveries:
    """The table. Every method may raise StorageUnavailable. `recipients` says what is known of the
    stores with these ids."""

    def __init__(self, database: Database, recipients: Recipients | None = None) -> None:
        self._database = database
        self._recipients = recipients

    async def claim(self, channel: str, *, owner: str, limit: int, lease_ms: int) -> list[Delivery]:
        """Take up to `limit` due deliveries for `lease_ms`; nobody else gets them before that."""
        now = select(database_now()).scalar_subquery()  # asked once, so that the index serves
        due = and_(deliveries.c.channel == channel, deliveries.c.due_at <= now)
        peek = select(deliveries.c.store_id).where(due).order_by(deliveries.c.due_at).limit(limit)
        async with self._database.connect() as connection:  # idle rounds write nothing
            ids = sorted(set((await connection.execute(peek)).scalars()))
        if not ids:
            return []
        # Asked before anything is claimed: where there is no answer, no attempt is counted.
        known = await self._recipients(ids) if self._recipients is not None else {}
        query = (
            select(
                deliveries.c.channel, (deliveries.c.attempts + 1).label("attempt"), notifications
            )
            .select_from(deliveries.join(notifications))
            .where(due, deliveries.c.store_id.in_(ids))
            .order_by(deliveries.c.due_at)
            .limit(limit)
            .with_for_update(of=deliveries, skip_locked=True)
        )
        async with self._database.begin() as connection:
            rows = (await connection.execute(query)).all()
            if rows:
                await _mark_claimed(connection, rows, owner, lease_ms)
        return [_delivery(row, owner[:200], known.get(row.store_id)) for row in rows]

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
            deliveries.c.owner == delivery.owner,
            deliveries.c.state == "sending",
        )
        async with self._database.begin() as connection:
            done = await connection.execute(update(deliveries).where(ours).values(values))
            return bool(done.rowcount)

    async def dead(
        self, *, channel: str | None = None, store_id: str | None = None, limit: int
    ) -> list[DeadLetter]:
        """The dead letters of the channel and the store (None: of all), newest first, at most
        `limit`."""
        query = (
            select(deliveries, notifications.c.type)
            .select_from(deliveries.join(notifications))
            .where(_is_dead(channel, store_id))
            .order_by(deliveries.c.finished_at.desc())
            .limit(limit)
        )
        async with self._database.connect() as connection:
            return [_dead_letter(row) for row in await connection.execute(query)]

    async def revive(
        self, *, channel: str | None = None, store_id: str | None = None, limit: int | None = None
    ) -> int:
        """Let the dead letters that `dead` tells of (None: no limit) be sent again, as if they had
        never been tried; how many they were. Interrupted, it has done whole batches."""
        async with self._database.connect() as connection:
            begun = (await connection.execute(select(database_now()))).scalar_one()
        which = and_(_is_dead(channel, store_id), deliveries.c.finished_at <= begun)
        revived, size = 0, 1
        while size and (limit is None or revived < limit):
            most = _BATCH if limit is None else min(_BATCH, limit - revived)
            async with self._database.begin() as connection:
                size = await _revive(connection, which, most)
            revived += size
        return revived

    async def count_dead(self, most: int) -> int:
        """How many dead letters there are, counted up to `most`."""
        some = select(deliveries.c.seq).where(_is_dead(None, None)).limit(most).subquery()
        async with self._database.connect() as connection:
            query = select(func.count()).select_from(some)
            return int((await connection.execute(query)).scalar_one())

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
    await connection.execute(change, _keys(rows))


async def _revive(connection: AsyncConnection, which: ColumnElement[bool], most: int) -> int:
    query = (
        select(deliveries.c.channel, deliveries.c.store_id, deliveries.c.seq)
        .where(which)
        .order_by(deliveries.c.finished_at.desc())
        .limit(most)
        .with_for_update(skip_locked=True)  # one that another is changing is left to that one
    )
    rows = (await connection.execute(query)).all()
    change = (
        update(deliveries)
        .where(_is(bindparam("of_channel"), bindparam("of_store"), bindparam("of_seq")))
        .values(state="pending", attempts=0, due_at=database_now(), finished_at=None)
    )
    if rows:
        await connection.execute(change, _keys(rows))
    return len(rows)


def _keys(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"of_channel": row.channel, "of_store": row.store_id, "of_seq": row.seq} for row in rows
    ]


def _is_dead(channel: str | None, store_id: str | None) -> ColumnElement[bool]:
    wanted = [deliveries.c.state == literal_column("'dead'")]  # as the index has it
    if channel is not None:
        wanted.append(deliveries.c.channel == channel)
    if store_id is not None:
        wanted.append(deliveries.c.store_id == store_id)
    return and_(*wanted)


def _dead_letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        row.channel, row.store_id, row.seq, row.type, row.attempts, row.last_error, row.finished_at
    )


def _is(channel: Any, store_id: Any, seq: Any) -> ColumnElement[bool]:
    return and_(
        deliveries.c.store_id == store_id,
        deliveries.c.seq == seq,
        deliveries.c.channel == channel,
    )


def _delivery(row: Row[Any], owner: str, to: Recipient | None) -> Delivery:
    name, timezone, contact = (to.name, to.timezone, to.contact) if to else (row.store_id, "", "")
    return Delivery(row.channel, row.attempt, owner, notification(row), name, timezone, contact)
