"""Redis pub/sub, one channel per store: a server receives only what its clients watch.

The connections that subscribe and those that publish are beside the lock traffic's. A message is
`<seq> <CloudEvent>`. Messages sent while a subscriber is away are gone; the hub is told to look for
them in the table. What is published is followed by a nudge on the channel of EVERY, for those who
watch all stores: it says whose it is, as a server's own clients are nudged without Redis.

On a cluster of Redis 7 or later pub/sub is sharded: see `routes`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from solocron.clock import Clock
from solocron.errors import LockUnavailable
from solocron.locks.address import parse_address
from solocron.locks.cluster import ClusterLink, make_link
from solocron.locks.connector import Connector
from solocron.locks.keys import fleet_key
from solocron.notifications.routes import OneServer, Route, Sharding, Shards
from solocron.notifications.subscriptions import RECONNECT_S, OnChange, Subscriptions
from solocron.storage.feed import EVERY

log = logging.getLogger("solocron.notifications")

MAX_EVENT = 256 * 1024
_MESSAGES_PER_WRITE = 501  # a batch of the relay and its nudge

Deliver = Callable[[str, int, bytes], None]


class Fanout:
    """Publishes to and receives from the channels of `environment`.

    `deadline_s` bounds connecting and publishing, in s; a silent link is lost after two
    `keepalive_s` at most. Run `run()` as a task.
    """

    def __init__(
        self, url: str, *, environment: str, clock: Clock, deadline_s: float,
        keepalive_s: float = 5.0,
    ) -> None:  # fmt: skip
        address = parse_address(url)
        # Channels, unlike keys, are shared by all databases of a server.
        database = f"@{address.database}" if address.database else ""
        self._prefix = fleet_key(environment, f"notifications{database}") + ":"
        self._name = b"%016x" % random.getrandbits(64)
        self._publisher = make_link(url, clock=clock, deadline_s=deadline_s)
        self._subscriptions = Subscriptions(
            self._prefix, deadline_s=deadline_s, keepalive_s=keepalive_s
        )
        self._slots = self._publisher.slots if isinstance(self._publisher, ClusterLink) else None
        if self._slots is not None:
            self._slots.listeners.append(self._subscriptions.look)
        self._sharding = Sharding(
            self._slots, channel=f"{self._prefix}*probe", deadline_s=deadline_s,
            changed=self._subscriptions.look,
        )  # fmt: skip
        self._connector = Connector(address, deadline_s=deadline_s)

    @property
    def is_up(self) -> bool:
        """Whether all that is watched is subscribed to."""
        return self._subscriptions.is_up

    # -- publishing ------------------------------------------------------------------------

    async def publish(self, messages: Sequence[tuple[str, int, bytes]]) -> bool:
        """Publish (store, seq, event), those of a store in order, then the nudge; False when Redis
        did not take them all."""
        said = [(store_id, b"%d %b" % (seq, event)) for store_id, seq, event in messages]
        said.append((EVERY, self._name))
        try:
            sharded = await self._sharding.ask()
            verb = "SPUBLISH" if sharded else "PUBLISH"
            for start in range(0, len(said), _MESSAGES_PER_WRITE):
                some = said[start : start + _MESSAGES_PER_WRITE]
                channels = [self._prefix + topic for topic, _ in some]
                await self._publisher.call_all(
                    [
                        (verb, channel, each[1])
                        for channel, each in zip(channels, some, strict=True)
                    ],
                    channels if sharded else (),
                )
        except LockUnavailable as error:
            log.debug("not published: %s", error)
            self._sharding.doubt()
            return False
        return True

    async def take_turn(self, period_ms: int, *, of: str = "turn", again: bool = False) -> bool:
        """Whether this server is the first to ask within the period for the turn `of` something;
        with `again`, whether its turn could be prolonged. False without Redis."""
        key = f"{self._prefix}*{of}"  # no store has such an id
        when = "XX" if again else "NX"
        try:
            reply = await self._publisher.call("SET", key, "1", "PX", period_ms, when, key=key)
        except LockUnavailable:
            return False
        return reply is not None

    # -- subscribing -----------------------------------------------------------------------

    async def watch(self, store_ids: Iterable[str]) -> None:
        """Subscribe; returns when the subscriptions are in force, or Redis is down."""
        await self._subscriptions.watch(store_ids)

    async def unwatch(self, store_ids: Iterable[str]) -> None:
        """Unsubscribe from stores nobody here watches any more."""
        await self._subscriptions.unwatch(store_ids)

    async def run(self, deliver: Deliver, on_change: OnChange, nudged: Callable[[], None]) -> None:
        """Keep subscribed until cancelled; reconnects by itself.

        `deliver(store_id, seq, event)` is called for each message of a watched store, `nudged` when
        EVERY is watched and another server published something, `on_change(stores)` each time
        subscriptions are lost or in force again: messages of these stores may have been missed.
        """

        def hear(channel: bytes, data: bytes) -> None:
            self._hear(channel, data, deliver, nudged)

        try:
            while True:
                try:
                    route = await self._route()
                except LockUnavailable as error:
                    self._subscriptions.down(error)
                else:
                    await self._subscriptions.run(route, hear, on_change)
                await asyncio.sleep(random.uniform(*RECONNECT_S))
        finally:
            await self.close()

    async def _route(self) -> Route:
        if self._slots is not None and await self._sharding.ask():
            return Shards(self._slots, self._sharding)
        return OneServer(self._connector, self._sharding)

    def _hear(
        self, channel: bytes, data: bytes, deliver: Deliver, nudged: Callable[[], None]
    ) -> None:
        store_id = channel.decode(errors="replace").removeprefix(self._prefix)
        if store_id == EVERY:
            if data != self._name:
                nudged()
            return
        seq, _, event = data.partition(b" ")
        if len(event) > MAX_EVENT or not seq.isdigit() or len(seq) > 18:
            log.warning("ignored a message of %d bytes on %s", len(data), store_id)
        else:
            deliver(store_id, int(seq), event)

    async def close(self) -> None:
        """Close the publishing connections. Safe to call twice; a later publish connects anew."""
        await self._publisher.close()
