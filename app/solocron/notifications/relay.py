"""The relay: committed notifications go to the clients of this server and, by Redis, of all others.

A row counts as published only when Redis took it. What a crash or an outage left unpublished is
swept up by one of the servers at a time; a message published twice is a repeat, which every hub
discards.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.clock import Clock
from solocron.errors import StorageUnavailable
from solocron.notifications.event import cloud_event
from solocron.notifications.fanout import Fanout
from solocron.notifications.hub import Hub
from solocron.storage.commits import when_committing
from solocron.storage.outbox import Notification, Outbox
from solocron.tracing import Tracer

log = logging.getLogger("solocron.notifications")

_BATCH = 500
_MAX_QUEUED = 20_000  # beyond it rows wait in the table for the sweep
_UNPUBLISHED_AFTER_MS = 2_000
_LOOKS_S = (0.0, 0.005, 0.02, 0.1, 0.3, 1.0)  # at what is about to be committed
_PER_BATCH = 5  # periods that others leave a sweeping server for one batch

_Queued = tuple[Notification, object | None]  # and the span it came from


class Relay:
    """Publishes rows. Run `run()` as a task; `sweep_s` is the pause between sweeps, in s.

    `committed` is called whenever there are new ones: they may be wanted by email as well.
    """

    def __init__(
        self, outbox: Outbox, fanout: Fanout, hub: Hub, clock: Clock, *,
        sweep_s: float = 2.0, committed: Callable[[], None] = lambda: None,
        tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        self._outbox = outbox
        self._fanout = fanout
        self._hub = hub
        self._clock = clock
        self._sweep_s = sweep_s
        self._committed = committed
        self._tracer = tracer or Tracer()
        self._queue: deque[_Queued] = deque()
        self._committing: deque[tuple[str, int]] = deque(maxlen=_MAX_QUEUED)
        self._expected = asyncio.Event()
        self._work = asyncio.Event()
        self._flushing = asyncio.Lock()

    @property
    def queued(self) -> int:
        """How many notifications wait for Redis."""
        return len(self._queue)

    def publish(self, rows: Sequence[Notification]) -> None:
        """Take rows that have just been committed: this server's clients get them now, those of
        the others soon."""
        self._deliver(rows)
        self._committed()
        if len(self._queue) < _MAX_QUEUED:
            origin = self._tracer.here()
            self._queue.extend((row, origin) for row in rows)
            self._work.set()

    def publish_when_committed(self, connection: AsyncConnection, row: Notification) -> None:
        """Publish a row that the transaction of `connection` wrote, as soon as that is committed.
        What is not seen within a second or two is left to the sweep."""

        def committing() -> None:
            self._committing.append(row.place)
            self._expected.set()

        when_committing(connection, committing)

    async def run(self) -> None:
        """Publish what is queued at once, and what others left behind, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep_forever())
            group.create_task(self._publish_committed())
            while True:
                await self._work.wait()
                await self.flush()

    async def _publish_committed(self) -> None:
        """Look for what is about to be committed, and publish what is there."""
        while True:
            await self._expected.wait()
            self._expected.clear()
            try:
                await self._look_for_committed()
            except StorageUnavailable as error:
                log.debug("committed notifications are left to the sweep: %s", error)

    async def _look_for_committed(self) -> None:
        waiting: set[tuple[str, int]] = set()
        for pause_s in _LOOKS_S:
            await asyncio.sleep(pause_s)
            waiting.update(self._committing)
            self._committing.clear()
            rows = await self._outbox.unpublished_among(waiting)
            waiting.difference_update(row.place for row in rows)
            if rows:
                self.publish(rows)
            if not waiting:
                return

    async def flush(self) -> None:
        """Publish all that is queued. While Redis takes nothing, it is left to the sweep."""
        async with self._flushing:  # one at a time: in order
            self._work.clear()
            while self._queue:
                size = min(_BATCH, len(self._queue))
                batch = [self._queue.popleft() for _ in range(size)]
                rows, origins = [row for row, _ in batch], [origin for _, origin in batch]
                if await self._publish(rows, origins):
                    await self._mark(rows)
                else:
                    self._queue.clear()

    async def _publish(
        self, rows: Sequence[Notification], origins: Iterable[object | None] = ()
    ) -> bool:
        """Whether Redis took them. The span links to the runs, or requests, they came from."""
        messages = [(each.store_id, each.seq, cloud_event(each)) for each in rows]
        count = {"messaging.batch.message_count": len(messages)}
        with self._tracer.span("publish", count, links=origins) as span:
            taken = await self._fanout.publish(messages)
            if not taken:
                span.fail("Redis did not take them: the sweep publishes them later")
        return taken

    def _deliver(self, rows: Sequence[Notification]) -> None:
        for each in rows:
            if self._hub.is_watched(each.store_id):
                self._hub.deliver(each.store_id, each.seq, cloud_event(each))
        self._hub.nudged()

    async def _mark(self, rows: Sequence[Notification]) -> bool:
        """Note what Redis took; False when it will be published again."""
        try:
            await self._outbox.mark_published(rows, int(self._clock.now_ms()))
        except StorageUnavailable as error:
            log.debug("published but not marked, will be published again: %s", error)
            return False
        return True

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s * random.uniform(0.8, 1.2))
            try:
                await self._sweep()
            except StorageUnavailable as error:
                log.debug("sweep of unpublished notifications skipped: %s", error)

    async def _sweep(self) -> None:
        """Publish what is old and unpublished, by one server at a time, in bounded batches; and
        keep the feed short of unnumbered ones, for the first who watches it."""
        period_ms, worked = int(self._sweep_s * 1000), False
        if not await self._fanout.take_turn(period_ms):
            return
        while rows := await self._outbox.unpublished(self._before(), _BATCH):
            worked = True
            if not await self._fanout.take_turn(_PER_BATCH * period_ms, again=True):
                break
            self._deliver(rows)
            if not await self._publish(rows) or not await self._mark(rows):
                break
        await self._outbox.number()
        if worked:
            await self._fanout.take_turn(period_ms, again=True)

    def _before(self) -> int:
        return int(self._clock.now_ms()) - _UNPUBLISHED_AFTER_MS
