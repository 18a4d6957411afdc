"""A hub whose outbox and fanout are models that a test controls, and clients that check it.

The outbox is a list, read as of one moment between the call and its return: the test decides which,
and whether the read fails. The fanout is the test itself, which reorders, repeats and drops.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from peers import Peer
from solocron.errors import StorageUnavailable
from solocron.notifications.client import Client
from solocron.notifications.event import cloud_event
from solocron.notifications.hub import Hub
from solocron.storage.feed import EVERY
from solocron.storage.outbox import Notification

STORES = ("a", "b", "c")
TOPICS = (*STORES, EVERY)
SOON = 1_000_000  # a seq no run comes near


def notification(store: str, seq: int) -> Notification:
    return Notification(store, seq, "store.closed", {}, 0)


class Table:
    """Committed notifications, some of the oldest of them pruned; those of the feed are numbered
    when somebody reads it."""

    def __init__(self, rng: random.Random) -> None:
        self.head = dict.fromkeys(STORES, 0)
        self.oldest_kept = dict.fromkeys(TOPICS, 1)
        self.feed: list[tuple[str, int]] = []
        self.unnumbered: list[tuple[str, int]] = []
        self.is_down = False
        self.reads = self.reading = 0
        self._rng = rng

    def commit(self, store: str) -> int:
        self.head[store] += 1
        self.unnumbered.append((store, self.head[store]))
        return self.head[store]

    def newest(self, topic: str) -> int:
        return len(self.feed) if topic == EVERY else self.head.get(topic, 0)

    def _heads(self, topics: Sequence[str]) -> dict[str, int]:
        if EVERY in topics:
            self.feed += self.unnumbered
            self.unnumbered.clear()
        return {each: self.newest(each) for each in topics if each in TOPICS}

    def _rows(self, topic: str, last: int) -> list[Notification]:
        places = range(max(last + 1, self.oldest_kept[topic]), self.newest(topic) + 1)
        if topic == EVERY:
            return [replace(notification(*self.feed[n - 1]), feed=n) for n in places]
        return [notification(topic, seq) for seq in places]

    async def _moment(self) -> None:
        for _ in range(self._rng.choice((0, 0, 1, 3, 8, 25))):
            await asyncio.sleep(0)
        if self.is_down:
            raise StorageUnavailable("down")

    async def _read(self, read: Any) -> Any:
        self.reads += 1
        self.reading += 1
        try:
            await self._moment()
            found = read()
            await self._moment()
            return found
        finally:
            self.reading -= 1

    async def heads(self, store_ids: Sequence[str]) -> dict[str, int]:
        return await self._read(lambda: self._heads(store_ids))

    async def oldest(self, store_ids: Sequence[str]) -> dict[str, int]:
        return await self._read(
            lambda: {
                each: self.oldest_kept[each]
                for each in store_ids
                if each in TOPICS and self.oldest_kept[each] <= self.newest(each)
            }
        )

    async def since(
        self, last: Mapping[str, int], limit: int
    ) -> tuple[dict[str, int], list[Notification]]:
        heads = await self.heads(list(last))
        stores = [each for each in sorted(last) if each in self.head]
        feed = last.get(EVERY, SOON)
        return heads, await self._read(
            lambda: (
                [row for each in stores for row in self._rows(each, last[each])][:limit]
                + self._rows(EVERY, feed)[:limit]
            )
        )


class Channels:
    """What Redis is subscribed to."""

    def __init__(self, rng: random.Random) -> None:
        self.is_up = True
        self.watched: set[str] = set()
        self._rng = rng

    async def watch(self, store_ids: Iterable[str]) -> None:
        self.watched.update(store_ids)
        for _ in range(self._rng.choice((0, 1, 4))):
            await asyncio.sleep(0)

    async def unwatch(self, store_ids: Iterable[str]) -> None:
        self.watched.difference_update(store_ids)
        for _ in range(self._rng.choice((0, 1, 4))):
            await asyncio.sleep(0)


class Seat:
    """One client, the subscribes it sent, and the check of all it heard."""

    def __init__(self, max_pending: int = 4_000_000) -> None:
        self.peer = Peer(max_pending)
        self.asked: dict[str, set[int | None]] = {each: set() for each in TOPICS}
        self.tasks: list[asyncio.Task[Any]] = []

    @property
    def client(self) -> Client:
        return self.peer.client

    def check(self) -> dict[str, set[int] | None]:
        """Where the client may stand in each store (None: anywhere); fails for a gap or repeat."""
        stands: dict[str, set[int] | None] = {}
        for frame in map(json.loads, self.peer.frames):
            if "specversion" in frame:
                store, seq = frame["source"].removeprefix("/stores/"), int(frame["sequence"])
                if "feedsequence" in frame:
                    store, seq = EVERY, int(frame["feedsequence"])
                assert store in stands, "a notification before its subscribe was answered"
                at = stands[store]
                assert at is None or seq - 1 in at, f"{store}: {seq} after {at}"
                stands[store] = {seq}
                continue
            for store, position in frame["stores"].items():
                asked = {position["seq"] if last is None else last for last in self.asked[store]}
                stands[store] = asked if position["recovered"] else None
        return stands


class World:
    """A hub, its table and channels, and clients doing what `step` is told."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.table, self.channels = Table(self.rng), Channels(self.rng)
        self.hub = Hub(self.table, self.channels, poll_s=0.002)  # type: ignore[arg-type] # models
        self.flying: list[tuple[str, int]] = []
        self.loses = self.rng.random() < 0.5  # else only what is sent while Redis is away
        self.seats = [Seat() for _ in range(3)]
        self.gone: list[Seat] = []

    async def step(self, what: str) -> None:
        await getattr(self, what)()
        for _ in range(self.rng.choice((0, 0, 1, 2, 5))):
            await asyncio.sleep(0)

    async def commit(self) -> None:
        store = self.rng.choice(STORES)
        for _ in range(self.rng.choice((1, 1, 2, 9))):
            self.flying.append((store, self.table.commit(store)))
        self.flying.append((EVERY, 0))

    async def deliver(self) -> None:
        """Some of what flies arrives, in any order, again or never."""
        self.rng.shuffle(self.flying)
        for _ in range(min(len(self.flying), self.rng.randrange(1, 6))):
            store, seq = self.flying.pop()
            if self.loses and self.rng.random() < 0.3:
                continue
            if self.rng.random() < 0.3:
                self.flying.insert(0, (store, seq))
            self.arrive(store, seq)

    def arrive(self, store: str, seq: int) -> None:
        if not self.channels.is_up or store not in self.channels.watched:
            return
        if store == EVERY:
            self.hub.nudged()
        else:
            self.hub.deliver(store, seq, cloud_event(notification(store, seq)))

    async def deliver_in_order(self) -> None:
        for store, seq in sorted(self.flying):
            self.arrive(store, seq)
        self.flying.clear()

    async def stranger(self) -> None:
        self.hub.deliver(self.rng.choice(STORES), SOON + self.rng.randrange(3), b"{}")

    async def subscribe(self) -> None:
        seat = self.rng.choice(self.seats)
        wanted: dict[str, int | None] = {}
        for store in self.rng.sample((*TOPICS, "nowhere"), self.rng.randrange(1, 6)):
            head = self.table.newest(store)
            wanted[store] = self.rng.choice((None, head, self.rng.randint(0, head), 0))
            if store in seat.asked:
                seat.asked[store].add(wanted[store])

        async def work() -> None:
            with suppress(StorageUnavailable):
                await self.hub.subscribe(seat.client, wanted)

        seat.tasks.append(asyncio.create_task(work()))

    async def unsubscribe(self) -> None:
        seat = self.rng.choice(self.seats)
        stores = self.rng.sample(TOPICS, self.rng.randrange(1, 3))
        seat.tasks.append(asyncio.create_task(self.hub.unsubscribe(seat.client, stores)))

    async def cancel(self) -> None:
        for task in self.rng.choice(self.seats).tasks[-2:]:
            task.cancel()

    async def replace(self) -> None:
        """A client goes, perhaps in the middle of its subscribe, and another comes."""
        seat = self.seats.pop(self.rng.randrange(len(self.seats)))
        seat.tasks.append(asyncio.create_task(self.hub.remove(seat.client)))
        self.gone.append(seat)
        self.seats.append(Seat(self.rng.choice((700, 4_000_000))))

    async def stall(self) -> None:
        wire = self.rng.choice(self.seats).peer.wire
        wire.stalled = not wire.stalled

    async def prune(self) -> None:
        store = self.rng.choice(TOPICS)
        head = self.table.newest(store)
        kept = self.rng.choice((head, self.rng.randint(0, head))) + 1
        self.table.oldest_kept[store] = max(self.table.oldest_kept[store], kept)

    async def database(self) -> None:
        self.table.is_down = not self.table.is_down

    async def redis(self) -> None:
        self.channels.is_up = not self.channels.is_up
        self.hub.resync()

    async def race(self) -> None:
        """A commit, told or lost in a blip of Redis, anywhere in a subscribe."""
        await self.subscribe()
        for _ in range(self.rng.randrange(40)):
            await asyncio.sleep(0)
        await self.commit()
        if self.rng.random() < 0.5:
            await self.deliver_in_order()
        elif self.channels.is_up:
            self.flying.clear()
            self.hub.resync()

    async def turns(self) -> None:
        for _ in range(self.rng.randrange(40)):
            await asyncio.sleep(0)

    # -- the end ---------------------------------------------------------------------------

    async def settle(self) -> None:
        """All is well again, and nothing is under way."""
        self.table.is_down = False
        for seat in self.seats:
            seat.peer.wire.stalled = False
        if self.loses or not self.channels.is_up:
            self.channels.is_up = True
            self.hub.resync()
        while self.flying:
            await self.deliver()
        tasks = [task for seat in (*self.seats, *self.gone) for task in seat.tasks]
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
            quiet = 0
            while quiet < 20:
                busy = self.hub._behind or self.hub._look.is_set() or self.table.reading
                quiet = 0 if busy else quiet + 1
                await asyncio.sleep(0)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]

    def check(self) -> None:
        for seat in (*self.seats, *self.gone):
            stands = seat.check()
            if seat in self.gone or seat.client.is_closed:
                continue
            for store in self.hub.watched_by(seat.client):
                at, head = stands[store], self.table.newest(store)
                assert store != EVERY or not self.table.unnumbered
                assert at is None or head in at, f"{store}: {head} never came, only {at}"
                assert self.hub._topics[store].clients[seat.client] == head

    async def leave(self) -> None:
        for seat in self.seats:
            await self.hub.remove(seat.client)
        assert not self.hub._topics and not self.hub._subscriptions and not self.hub._resuming
        assert not self.channels.watched
