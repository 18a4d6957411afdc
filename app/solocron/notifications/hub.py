"""The hub: which clients watch which stores, and how far each of them has come.

A client's position in a store is the last `seq` sent to it. A notification is sent when it is the
next one, dropped when it is a repeat, and when it is further ahead the client is *behind*: the
missing ones are read from the table. That one rule serves four situations: a connect with a last
`seq`, a gap, Redis's return, and Redis being away. So nothing is lost or doubled, and the order of
each store is kept, whatever pub/sub drops, repeats or reorders.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from solocron.errors import StorageUnavailable
from solocron.notifications.client import Client, text_frame
from solocron.notifications.event import cloud_event
from solocron.notifications.fanout import Fanout
from solocron.storage.outbox import CHUNK, Outbox

log = logging.getLogger("solocron.notifications")

_PAGE = 1000
_HELD_PER_STORE = 256
_RETRY_S = 1.0
_DRAIN_POLL_S = 0.02
_DRAIN_S = 30.0
_PACE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Position:
    """Where a subscription starts. `seq` is the store's newest; `recovered` is False when the
    history does not reach back to the client's last `seq`."""

    seq: int
    recovered: bool


@dataclass(eq=False)
class _Topic:
    """One watched store. `newest` is the highest seq heard of here; `held` are live frames that
    wait for the missing ones before them; `joining` counts subscriptions under way; `doubted`:
    the last look found nothing before a held frame."""

    clients: dict[Client, int] = field(default_factory=dict)
    newest: int = 0
    held: dict[int, bytes] = field(default_factory=dict)
    joining: int = 0
    doubted: bool = False


class Hub:
    """Delivers notifications to clients. Run `run()` as a task; it ends when cancelled.

    `poll_s` is how often the table is asked while Redis is away, in s.
    """

    def __init__(self, outbox: Outbox, fanout: Fanout, *, poll_s: float = 1.0) -> None:
        self._outbox = outbox
        self._fanout = fanout
        self._poll_s = poll_s
        self._topics: dict[str, _Topic] = {}
        self._subscriptions: dict[Client, set[str]] = {}
        self._resuming: set[Client] = set()
        self._behind: set[str] = set()
        self._look = asyncio.Event()  # something to read from the table
        self._all_behind = False

    @property
    def clients(self) -> int:
        """How many clients are subscribed to anything."""
        return len(self._subscriptions)

    def watched_by(self, client: Client) -> int:
        """How many stores a client watches."""
        return len(self._subscriptions.get(client, ()))

    # -- subscribing -----------------------------------------------------------------------

    async def subscribe(self, client: Client, wanted: Mapping[str, int | None]) -> list[str]:
        """Add stores to what `client` watches, after its last seq of each (None: only new ones).

        Sends the `subscribed` frame, then what the client missed, paced to what it takes; returns
        the stores that do not exist. Raises StorageUnavailable, and then nothing has changed.
        """
        for store_id in wanted:
            self._topics.setdefault(store_id, _Topic()).joining += 1
        positions: dict[str, Position] = {}
        try:
            await self._fanout.watch(wanted)
            heads = await self._outbox.heads(list(wanted))
            behind = {
                each: last
                for each, last in wanted.items()
                if last is not None and last < heads.get(each, 0)
            }
            oldest = await self._outbox.oldest(list(behind)) if behind else {}
            for store_id, head in heads.items():
                start, recovered = _start(wanted[store_id], head, oldest.get(store_id))
                positions[store_id] = Position(head, recovered)
                self._join(client, store_id, start, head)
            client.send(subscribed(positions))
        finally:
            for store_id in wanted:
                self._topics[store_id].joining -= 1
            await self._leave(each for each in wanted if each not in positions)
        await self._resume(client, list(behind))
        return [each for each in wanted if each not in positions]

    def _join(self, client: Client, store_id: str, start: int, head: int) -> None:
        topic = self._topics[store_id]
        topic.clients[client] = start
        topic.newest = max(topic.newest, head)
        self._subscriptions.setdefault(client, set()).add(store_id)

    async def _resume(self, client: Client, store_ids: Sequence[str]) -> None:
        """Replay for one client, at its own pace; what comes meanwhile is caught up after."""
        self._resuming.add(client)
        try:
            for start in range(0, len(store_ids), CHUNK):
                await self._replay(store_ids[start : start + CHUNK], client)
        except StorageUnavailable as error:
            log.debug("resume waits for the database: %s", error)
        finally:
            self._resuming.discard(client)
            for store_id in self._subscriptions.get(client, ()):
                topic = self._topics[store_id]
                if topic.clients[client] < topic.newest:
                    self._need(store_id)

    async def unsubscribe(self, client: Client, store_ids: Iterable[str]) -> None:
        """Stop watching these stores; stores not watched are ignored."""
        mine = self._subscriptions.get(client, set())
        gone = [each for each in store_ids if each in mine]
        for store_id in gone:
            mine.discard(store_id)
            self._topics[store_id].clients.pop(client, None)
        if not mine:
            self._subscriptions.pop(client, None)
        await self._leave(gone)

    async def remove(self, client: Client) -> None:
        """Forget a client that is gone. Safe to call twice."""
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

    def deliver(self, store_id: str, seq: int, event: bytes) -> None:
        """A committed notification, from this server's relay or from Redis."""
        topic = self._topics.get(store_id)
        if topic is not None:
            self._send(store_id, topic, seq, text_frame(event))

    def _send(self, store_id: str, topic: _Topic, seq: int, frame: bytes) -> None:
        topic.newest = max(topic.newest, seq)
        behind = False
        for client, last in topic.clients.items():
            if seq == last + 1:
                topic.clients[client] = seq
                client.send(frame)
            elif seq > last and client not in self._resuming:
                behind = True
        if behind:
            if len(topic.held) < _HELD_PER_STORE:
                topic.held[seq] = frame
            self._need(store_id)

    def _need(self, store_id: str) -> None:
        self._behind.add(store_id)
        self._look.set()

    def resync(self) -> None:
        """Messages may have been missed on every store (Redis is back): look in the table."""
        self._all_behind = True
        self._look.set()

    # -- catch-up --------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring clients that are behind up to date; poll the table while Redis is away."""
        while True:
            try:
                async with asyncio.timeout(None if self._fanout.is_up else self._poll_s):
                    await self._look.wait()
            except TimeoutError:
                self._all_behind = True
            self._look.clear()
            try:
                await self._catch_up()
            except StorageUnavailable as error:
                log.debug("catch-up waits for the database: %s", error)
                await asyncio.sleep(_RETRY_S)
                self._look.set()

    async def _catch_up(self) -> None:
        if self._all_behind:
            heads = await self._outbox.heads(list(self._topics))
            self._all_behind = False
            for store_id, head in heads.items():
                topic = self._topics.get(store_id)
                if topic is not None and any(last < head for last in topic.clients.values()):
                    topic.newest = max(topic.newest, head)
                    self._behind.add(store_id)
        while self._behind:
            chunk = [self._behind.pop() for _ in range(min(CHUNK, len(self._behind)))]
            try:
                await self._replay(chunk)
            except StorageUnavailable:
                self._behind.update(chunk)
                raise

    async def _replay(self, store_ids: Sequence[str], only: Client | None = None) -> None:
        """Read what the slowest client of each store is missing, and send it to all who miss it.

        With `only`, what that one client is missing, and no faster than it takes it.
        """
        found: set[str] = set()
        while last := self._slowest(store_ids, only):
            rows = await self._outbox.since(list(last.items()), _PAGE)
            for row in rows:
                topic = self._topics.get(row.store_id)
                if topic is not None:
                    self._mend(row.store_id, topic, row.seq, last)
                    self._send(row.store_id, topic, row.seq, text_frame(cloud_event(row)))
            found.update(row.store_id for row in rows)
            if len(rows) < _PAGE:
                break
            if only is not None:
                await self._paced(only)
        for store_id in store_ids if only is None else ():
            self._resend_held(store_id, fruitful=store_id in found)

    def _resend_held(self, store_id: str, *, fruitful: bool) -> None:
        """Live frames that came during the replay. One whose predecessor is in no second look
        either was never committed here (a database restored, a stranger's message): drop it."""
        topic = self._topics.get(store_id)
        if topic is None or not topic.held:
            return
        held, topic.held = topic.held, {}
        if topic.doubted and not fruitful:
            topic.doubted = False
            topic.newest = max(topic.clients.values(), default=0)
            log.warning("dropped messages on store %s that the table does not have", store_id)
            return
        topic.doubted = not fruitful
        for seq in sorted(held):
            self._send(store_id, topic, seq, held[seq])

    def _slowest(self, store_ids: Sequence[str], only: Client | None) -> dict[str, int]:
        slowest: dict[str, int] = {}
        for store_id in store_ids:
            topic = self._topics.get(store_id)
            if topic is None:
                continue
            positions = [
                last
                for client, last in topic.clients.items()
                if (client is only if only else client not in self._resuming)
            ]
            if positions and min(positions) < topic.newest:
                slowest[store_id] = min(positions)
        return slowest

    def _mend(self, store_id: str, topic: _Topic, seq: int, asked: dict[str, int]) -> None:
        """A gap in the table itself means the history was pruned: say so, and go on from there."""
        if seq <= asked[store_id] + 1:
            asked[store_id] = max(asked[store_id], seq)
            return
        asked[store_id] = seq
        for client, last in topic.clients.items():
            if last < seq - 1:
                client.send(subscribed({store_id: Position(seq - 1, False)}))
                topic.clients[client] = seq - 1

    async def _paced(self, client: Client) -> None:
        """Let the client take what it was sent before the next page, for at most 30 s."""
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


def subscribed(positions: Mapping[str, Position]) -> bytes:
    """The frame that answers a subscribe."""
    stores = {
        each: {"seq": position.seq, "recovered": position.recovered}
        for each, position in positions.items()
    }
    message = {"type": "subscribed", "stores": stores}
    return text_frame(json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode())
