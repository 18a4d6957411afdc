"""The hub: which clients watch which stores, and how far each of them has come.

A client's position in a store is the last `seq` sent to it. A notification is sent when it is the
next one, dropped when it is a repeat, and held when it is further ahead: the client is *behind*,
and the table is looked at. One look serves every situation (a connect with a last `seq`, a gap,
Redis's return, Redis being away): it reads the store's newest `seq`, then the rows past the
position. As rows are committed before they are published, that settles all that was heard before
it: what the rows lack up to the newest was pruned, what is beyond the newest was never committed.
So nothing is lost or doubled, and the order of each store is kept, whatever pub/sub drops, repeats
or reorders. What it drops in silence (a master that a failover left behind still takes messages,
for nobody) leaves no gap to see until the store's next one: the table is looked at every 30 s.

Who watches all stores (EVERY) watches one more "store": the feed, whose positions are the numbers
that notifications have in it. As they get those only after their commit, such a client is served
from the table alone, as soon as somebody says that there is something new.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from solocron.errors import StorageUnavailable
from solocron.notifications.client import Message, Receiver, message_of
from solocron.notifications.event import cloud_event
from solocron.notifications.fanout import Fanout
from solocron.storage.feed import EVERY
from solocron.storage.outbox import CHUNK, Outbox

log = logging.getLogger("solocron.notifications")

_PAGE = 1000
_HELD_PER_STORE = 256
_RETRY_S = 1.0
_DRAIN_POLL_S = 0.02
_DRAIN_S = 30.0
_PACE_BYTES = 256 * 1024


class Position(TypedDict):
    """Where a subscription starts. `seq` is the store's newest; `recovered` is False when the
    history does not reach back to the client's last `seq`."""

    seq: int
    recovered: bool


class Subscribed(TypedDict):
    """The answer to a subscribe, and what is said of a store whose history was pruned away."""

    type: Literal["subscribed"]
    stores: dict[str, Position]


@dataclass(eq=False, slots=True)
class _Topic:
    """One watched store. `held` are live messages that a client cannot take yet, the newest ones
    when there are many; `joining` counts subscriptions under way."""

    clients: dict[Receiver, int] = field(default_factory=dict)
    held: dict[int, Message] = field(default_factory=dict)
    joining: int = 0


class Hub:
    """Delivers notifications to clients. Run `run()` as a task; it ends when cancelled.

    `poll_s` is how often the table is asked while Redis is away, `audit_s` while it is there, in s.
    """

    def __init__(
        self, outbox: Outbox, fanout: Fanout, *, poll_s: float = 1.0, audit_s: float = 30.0
    ) -> None:
        self._outbox = outbox
        self._fanout = fanout
        self._poll_s = poll_s
        self._audit_s = audit_s
        self._topics: dict[str, _Topic] = {}
        self._subscriptions: dict[Receiver, set[str]] = {}
        self._resuming: Counter[Receiver] = Counter()
        self._behind: set[str] = set()
        self._look = asyncio.Event()  # something to read from the table
        self._resyncs = 0
        self.deliveries = 0  # notifications sent so far, once for each client

    @property
    def stores(self) -> int:
        """How many stores are watched."""
        return len(self._topics)

    @property
    def clients(self) -> int:
        """How many clients are subscribed to anything."""
        return len(self._subscriptions)

    def watched_by(self, client: Receiver) -> frozenset[str]:
        """The stores a client watches."""
        return frozenset(self._subscriptions.get(client, ()))

    def positions(self, client: Receiver) -> dict[str, int]:
        """The last seq sent to a client of each store it watches."""
        watched = self._subscriptions.get(client, ())
        return {each: self._topics[each].clients[client] for each in watched}

    # -- subscribing -----------------------------------------------------------------------

    async def subscribe(self, client: Receiver, wanted: Mapping[str, int | None]) -> list[str]:
        """Add stores to what `client` watches, after its last seq of each (None: only new ones).

        Sends the `subscribed` frame, then what the client missed, paced to what it takes; returns
        the stores that do not exist. Raises StorageUnavailable, and then nothing has changed.
        """
        resyncs = self._resyncs
        for store_id in wanted:
            self._topics.setdefault(store_id, _Topic()).joining += 1
        try:
            try:
                heads, behind = await self._join(client, wanted)
            finally:
                for store_id in wanted:
                    self._topics[store_id].joining -= 1
            await self._resume(client, behind)
            for store_id in wanted:  # what was heard, or may have been missed, while it joined
                self._release(store_id)
                if self._resyncs != resyncs or store_id == EVERY:  # nudges are not held
                    self._need(store_id)
        finally:
            await self._leave(wanted)
        return [each for each in wanted if each not in heads]

    async def unknown(self, store_ids: Iterable[str]) -> list[str]:
        """Those of the stores that do not exist. Raises StorageUnavailable."""
        ids = list(store_ids)
        heads = await self._outbox.heads(ids)
        return [each for each in ids if each not in heads]

    async def _join(
        self, client: Receiver, wanted: Mapping[str, int | None]
    ) -> tuple[Mapping[str, int], Sequence[str]]:
        """Set the client's positions, all in one turn: (newest seqs, stores it is behind in)."""
        await self._fanout.watch(wanted)
        heads = await self._outbox.heads(list(wanted))
        behind = {
            each: last
            for each, last in wanted.items()
            if last is not None and last < heads.get(each, 0)
        }
        oldest = await self._outbox.oldest(list(behind)) if behind else {}
        if client.is_closed:
            return heads, ()
        positions: dict[str, Position] = {}
        for store_id, head in heads.items():
            start, recovered = _start(wanted[store_id], head, oldest.get(store_id))
            positions[store_id] = {"seq": head, "recovered": recovered}
            self._topics[store_id].clients[client] = start
        if heads:
            self._subscriptions.setdefault(client, set()).update(heads)
        client.tell(subscribed(positions))
        return heads, list(behind)

    async def _resume(self, client: Receiver, store_ids: Sequence[str]) -> None:
        """Replay for one client, at its own pace; what comes meanwhile is caught up after."""
        if not store_ids:
            return
        self._resuming[client] += 1
        try:
            for start in range(0, len(store_ids), CHUNK):
                await self._replay(store_ids[start : start + CHUNK], client)
        except StorageUnavailable as error:
            log.debug("resume waits for the database: %s", error)
        finally:
            self._resuming[client] -= 1
            if not self._resuming[client]:
                del self._resuming[client]
            for store_id in self._subscriptions.get(client, ()):  # looks passed it over
                self._need(store_id)

    async def unsubscribe(self, client: Receiver, store_ids: Iterable[str]) -> None:
        """Stop watching these stores; stores not watched are ignored."""
        mine = self._subscriptions.get(client, set())
        gone = [each for each in store_ids if each in mine]
        for store_id in gone:
            mine.discard(store_id)
            self._topics[store_id].clients.pop(client, None)
        if not mine:
            self._subscriptions.pop(client, None)
        await self._leave(gone)

    async def remove(self, client: Receiver) -> None:
        """Forget a client that is gone, for good. Safe to call twice."""
        client.close()
        await self.unsubscribe(client, list(self._subscriptions.get(client, ())))

    async def _leave(self, store_ids: Iterable[str]) -> None:
        empty = []
        for store_id in store_ids:
            topic = self._topics.get(store_id)
            if topic is not None and not topic.clients and not topic.joining:
                del self._topics[store_id]
                empty.append(store_id)
        if empty:
            await self._fanout.unwatch(empty)

    # -- delivering ------------------------------------------------------------------------

    def is_watched(self, store_id: str) -> bool:
        """Whether anybody here watches, or is about to watch, the store."""
        return store_id in self._topics

    def deliver(self, store_id: str, seq: int, event: bytes) -> None:
        """A committed notification, from this server's relay or from Redis."""
        topic = self._topics.get(store_id)
        if topic is not None:
            self._send(topic, message_of(store_id, seq, event))

    def _send(self, topic: _Topic, message: Message) -> None:
        seq, clients, passed_over = message.seq, topic.clients, 0
        early, behind, before = topic.joining > 0, False, seq - 1
        for client, last in clients.items():
            if last == before:
                clients[client] = seq
                client.notify(message)
            else:
                passed_over += 1
                if last < before and not client.is_closed:
                    early = True
                    behind = behind or client not in self._resuming
        self.deliveries += len(clients) - passed_over
        if early:
            topic.held[seq] = message
            if len(topic.held) > _HELD_PER_STORE:
                del topic.held[min(topic.held)]
        if behind:
            self._need(message.topic)

    def _release(self, store_id: str) -> None:
        """Send again what was held; it is held again if it is still ahead of somebody."""
        topic = self._topics.get(store_id)
        if topic is not None and topic.held:
            held, topic.held = topic.held, {}
            for seq in sorted(held):
                self._send(topic, held[seq])

    def _need(self, store_id: str) -> None:
        self._behind.add(store_id)
        self._look.set()

    def nudged(self) -> None:
        """Somebody published: those who watch all stores look in the table."""
        self._need(EVERY)

    def resync(self, store_ids: Collection[str] | None = None) -> None:
        """Messages may have been missed on these stores, or (None) on every one: look in the
        table."""
        self._resyncs += 1
        self._behind.update(self._topics if store_ids is None else self._topics.keys() & store_ids)
        self._look.set()

    # -- catch-up --------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring clients that are behind up to date; look at all of them now and then."""
        loop = asyncio.get_running_loop()
        audited = loop.time()
        while True:
            due = audited + (self._audit_s if self._fanout.is_up else self._poll_s)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._look.wait()
            if loop.time() >= due:
                self.resync()
                audited = loop.time()
            self._look.clear()
            try:
                await self._catch_up()
            except StorageUnavailable as error:
                log.debug("catch-up waits for the database: %s", error)
                await asyncio.sleep(_RETRY_S)
                self._look.set()

    async def _catch_up(self) -> None:
        while self._behind:
            chunk = [self._behind.pop() for _ in range(min(CHUNK, len(self._behind)))]
            try:
                await self._replay(chunk)
            except StorageUnavailable:
                self._behind.update(chunk)
                raise

    async def _replay(self, store_ids: Sequence[str], only: Receiver | None = None) -> None:
        """Read what the slowest client of each store is missing, and send it to all who miss it.

        With `only`, what that one client is missing, and no faster than it takes it.
        """
        more, unpaced = True, 0
        while more and (asked := self._positions(store_ids, only)):
            heard = {each: dict(self._topics[each].held) for each in asked}
            heads, rows = await self._outbox.since(asked, _PAGE)
            for row in rows:
                store_id, seq = row.place
                topic = self._topics.get(store_id)
                if topic is not None:
                    if seq > asked[store_id] + 1:
                        self._skip(store_id, topic, seq - 1)
                    self._send(topic, message := message_of(store_id, seq, cloud_event(row)))
                    unpaced += len(message.frame)
                asked[store_id] = seq
                if only is not None and unpaced > _PACE_BYTES:
                    await self._paced(only)
                    unpaced = 0
            more = len(rows) >= _PAGE
            if not more:
                for store_id, reached in asked.items():
                    self._settle(store_id, reached, heads.get(store_id, 0), heard[store_id])

    def _positions(self, store_ids: Iterable[str], only: Receiver | None) -> dict[str, int]:
        """The position of the slowest client of each store."""
        slowest: dict[str, int] = {}
        for store_id in store_ids:
            topic = self._topics.get(store_id)
            if topic is None:
                continue
            clients = topic.clients if only is None else topic.clients.keys() & {only}
            positions = [
                topic.clients[client]
                for client in clients
                if not client.is_closed and (only is not None or client not in self._resuming)
            ]
            if positions:
                slowest[store_id] = min(positions)
        return slowest

    def _settle(self, store_id: str, reached: int, head: int, heard: Mapping[int, Message]) -> None:
        """The table was read to its end: `reached` is its last row, `head` the seq it must have
        had at least, and `heard` the messages held before it was read."""
        topic = self._topics.get(store_id)
        if topic is None:
            return
        if reached < head:
            self._skip(store_id, topic, head)
        strange = [seq for seq in heard if seq > head and topic.held.get(seq) is heard[seq]]
        for seq in strange:
            del topic.held[seq]
        if strange:
            log.warning("dropped messages on store %s that the table does not have", store_id)
        self._release(store_id)

    def _skip(self, store_id: str, topic: _Topic, seq: int) -> None:
        """A gap in the table itself means the history was pruned: say so, and go on from there."""
        for client, last in topic.clients.items():
            if last < seq:
                topic.clients[client] = seq
                client.tell(subscribed({store_id: {"seq": seq, "recovered": False}}))

    async def _paced(self, client: Receiver) -> None:
        """Let the client take what it was sent before it is sent more, for at most 30 s."""
        for _ in range(int(_DRAIN_S / _DRAIN_POLL_S)):
            if client.is_closed or client.pending < _PACE_BYTES:
                return
            await asyncio.sleep(_DRAIN_POLL_S)


def _start(last: int | None, head: int, oldest: int | None) -> tuple[int, bool]:
    """(position to start after, whether the client misses nothing)."""
    if last is None:
        return head, True
    if last > head:  # the client has seen what this database never had: it was restored
        return head, False
    if last < head and (oldest is None or oldest > last + 1):
        return (head if oldest is None else oldest - 1), False
    return last, True


def subscribed(positions: dict[str, Position]) -> bytes:
    """The answer to a subscribe, as JSON."""
    answer: Subscribed = {"type": "subscribed", "stores": positions}
    return json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()
