"""The end of the history: old notifications are deleted, with their deliveries, and old runs.

Deleted is what is settled: published, numbered in the feed, and with no delivery that waits. A
store's `notification_seq` and the feed's position stay, so the numbers go on, and a reader who
comes from before the history sees the gap. Of each job the newest run stays: it tells which ticks
were run.

A batch is one transaction of few rows, and holds the feed as whoever numbers or marks does: two
that change the same rows in different orders would wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, delete, exists, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.storage.engine import Database, database_now
from solocron.storage.feed import has_key, keys, lock_feed
from solocron.storage.tables import deliveries, job_runs, notifications

BATCH = 200


class Pruned(NamedTuple):
    """A batch. `found` below BATCH: there is no more. The next one looks from `place` on (UTC epoch
    ms): what had to stay is not looked at again."""

    found: int
    place: int


class History:
    """Deletes what is older than the history. Every method may raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def beginning(self, now_ms: int, kept_ms: int) -> int:
        """Where a history of `kept_ms` begins (UTC epoch ms), by the caller's clock or the
        database's, whichever is behind: one that runs years ahead must not empty it."""
        async with self._database.connect() as connection:
            theirs = int((await connection.execute(select(database_now()))).scalar_one())
        return min(now_ms, theirs) - kept_ms

    async def prune(self, before_ms: int, channels: Sequence[str], place: int = 0) -> Pruned:
        """Delete up to BATCH settled notifications of before `before_ms`, oldest first.

        One whose delivery waits stays, unless nobody delivers that: it has been due since before
        then, and its channel is none of `channels`.
        """
        waits = _waits(before_ms, channels)
        query = (
            select(notifications.c.store_id, notifications.c.seq, notifications.c.created_at)
            .where(
                notifications.c.published_at.is_not(None),
                notifications.c.feed.is_not(None),
                notifications.c.created_at < before_ms,
                notifications.c.created_at >= place,
                ~exists().where(_of_notification(), waits),
            )
            .order_by(notifications.c.created_at)
            .limit(BATCH)
        )
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return Pruned(0, place)
        async with self._database.begin() as connection:
            await lock_feed(connection)
            await _delete(connection, keys(rows), waits)
        return Pruned(len(rows), rows[-1].created_at)

    async def prune_runs(self, before_ms: int) -> int:
        """Delete up to BATCH ended runs of each job that began, and whose ticks are, before
        `before_ms`, and return how many were; never the newest of a job, nor the newest its
        schedule began."""
        pruned, job = 0, ""
        while True:
            following = select(func.min(job_runs.c.job)).where(job_runs.c.job > job)
            async with self._database.connect() as connection:
                found = (await connection.execute(following)).scalar_one()
                if found is None:
                    return pruned
                job = found
                ticks = await _old_ticks(connection, job, before_ms)
            if ticks:
                old = and_(job_runs.c.job == job, job_runs.c.tick.in_(ticks))
                async with self._database.begin() as connection:
                    await connection.execute(delete(job_runs).where(old))
                pruned += len(ticks)


async def _delete(
    connection: AsyncConnection, settled: list[dict[str, Any]], waits: ColumnElement[bool]
) -> None:
    """Delete the notifications of these `keys`, their deliveries first: one that was made to wait
    again meanwhile is seen then, and keeps its notification."""
    theirs = delete(deliveries).where(has_key(deliveries), not_(waits))
    await connection.execute(theirs, settled)
    kept = exists().where(_of_notification())
    await connection.execute(delete(notifications).where(has_key(notifications), ~kept), settled)


def _of_notification() -> ColumnElement[bool]:
    return and_(
        deliveries.c.store_id == notifications.c.store_id, deliveries.c.seq == notifications.c.seq
    )


def _waits(before_ms: int, channels: Sequence[str]) -> ColumnElement[bool]:
    """Whether a delivery may still be sent. By its state, not its due_at alone: PostgreSQL would
    look through the index of all that are due, for each notification."""
    open_ = or_(deliveries.c.state == "pending", deliveries.c.state == "sending")
    served = [deliveries.c.channel == each for each in channels]
    served.append(deliveries.c.due_at >= before_ms)
    return and_(open_, or_(*served))


async def _old_ticks(connection: AsyncConnection, job: str, before_ms: int) -> Sequence[int]:
    newest = select(func.max(job_runs.c.tick)).where(job_runs.c.job == job)
    bounds = [before_ms]
    for query in (newest, newest.where(job_runs.c.origin == "schedule")):
        tick = (await connection.execute(query)).scalar_one()
        if tick is not None:
            bounds.append(tick)
    old = (
        select(job_runs.c.tick)
        .where(
            job_runs.c.job == job,
            job_runs.c.tick < min(bounds),
            job_runs.c.state != "running",
            job_runs.c.started_at < before_ms,  # of a backfill it is long after the tick
        )
        .order_by(job_runs.c.tick)
        .limit(BATCH)
    )
    return (await connection.execute(old)).scalars().all()
