"""Redis pub/sub, one channel per store: a server receives only what its clients watch.

Two connections beside the lock traffic's: one that subscribes, one that publishes. A message is
`<seq> <CloudEvent>`. Messages sent while the subscriber is away are gone; the hub is told to look
for them in the table. What is published is followed by a nudge on the channel of EVERY, for those
who watch all stores: it says whose it is, as a server's own clients are nudged without Redis.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from solocron.clock import Clock
from solocron.errors import LockUnavailable
from solocron.locks.address import parse_address
from solocron.locks.cluster import make_link
from solocron.locks.connector import Connector
from solocron.storage.feed import EVERY

log = logging.getLogger("solocron.notifications")

MAX_EVENT = 256 * 1024
_CHANNELS_PER_COMMAND = 1000
_MESSAGES_PER_WRITE = 501  # a batch of the relay and its nudge
_RECONNECT_S = (0.1, 1.0)

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
        self._publisher = make_link(url, clock=clock, deadline_s=deadline_s)
        self._connector = Connector(parse_address(url), deadline_s=deadline_s)
        self._prefix = f"solocron:{environment}:notifications:".replace("::", ":")
        self._name = b"%016x" % random.getrandbits(64)
        self._deadline_s = deadline_s
        self._keepalive_s = keepalive_s
        self._watched: set[str] = set()
        self._connection: AbstractConnection | None = None
        self._markers: dict[bytes, asyncio.Future[None]] = {}
        self._heard = False
        self._broken = asyncio.Event()
        self._said: bool | None = None
        self.is_up = False

    # -- publishing ------------------------------------------------------------------------

    async def publish(self, messages: Sequence[tuple[str, int, bytes]]) -> bool:
        """Publish (store, seq, event) in order, then the nudge; False when Redis did not take them
        all."""
        said = [(store_id, b"%d %b" % (seq, event)) for store_id, seq, event in messages]
        said.append((EVERY, self._name))
        try:
            for start in range(0, len(said), _MESSAGES_PER_WRITE):
                await self._publisher.call_all(
                    [
                        ("PUBLISH", self._prefix + topic, data)
                        for topic, data in said[start : start + _MESSAGES_PER_WRITE]
                    ]
                )
        except LockUnavailable as error:
            log.debug("not published: %s", error)
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
        fresh = [each for each in store_ids if each not in self._watched]
        self._watched.update(fresh)
        connection = self._connection
        if connection is None:
            return
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._send(connection, "SUBSCRIBE", fresh)
                await self._marker(connection)
        except (RedisError, OSError, TimeoutError):
            self._give_up(connection)

    async def unwatch(self, store_ids: Iterable[str]) -> None:
        """Unsubscribe from stores nobody here watches any more."""
        gone = [each for each in store_ids if each in self._watched]
        self._watched.difference_update(gone)
        connection = self._connection
        if not gone or connection is None:
            return
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._send(connection, "UNSUBSCRIBE", gone)
        except (RedisError, OSError, TimeoutError):
            self._give_up(connection)

    def _give_up(self, connection: AbstractConnection) -> None:
        """Have `run` connect anew, with all that is watched; it may have done so already."""
        if connection is self._connection:
            self._broken.set()

    async def run(
        self, deliver: Deliver, on_change: Callable[[], None], nudged: Callable[[], None]
    ) -> None:
        """Keep subscribed until cancelled; reconnects by itself.

        `deliver(store_id, seq, event)` is called for each message of a watched store, `nudged` when
        EVERY is watched and another server published something, `on_change` each time the
        subscriptions are lost or in force again: messages may have been missed.
        """
        try:
            while True:
                try:
                    await self._session(deliver, on_change, nudged)
                except* (RedisError, OSError, TimeoutError) as group:
                    self._down(group.exceptions[0])
                await asyncio.sleep(random.uniform(*_RECONNECT_S))
        finally:
            self._forget()
            await self.close()

    async def close(self) -> None:
        """Close the publishing connections. Safe to call twice; a later publish connects anew."""
        await self._publisher.close()

    async def _session(
        self, deliver: Deliver, on_change: Callable[[], None], nudged: Callable[[], None]
    ) -> None:
        async with asyncio.timeout(self._deadline_s):
            connection = await self._connector.open()
        try:
            self._connection = connection
            self._broken.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(connection, deliver, nudged))
                group.create_task(self._subscribe_all(connection, on_change))
                group.create_task(self._keep_alive(connection))
        finally:
            was_up = self.is_up
            self._forget()
            if was_up:
                on_change()
            await connection.disconnect(nowait=True)

    async def _subscribe_all(
        self, connection: AbstractConnection, on_change: Callable[[], None]
    ) -> None:
        async with asyncio.timeout(self._deadline_s + len(self._watched) / 10_000):
            await self._send(connection, "SUBSCRIBE", list(self._watched))
            await self._marker(connection)
        self.is_up = True
        if self._said is not True:
            log.info("Redis ready for notifications")
        self._said = True
        on_change()

    async def _send(
        self, connection: AbstractConnection, command: str, store_ids: Sequence[str]
    ) -> None:
        """One write, so that no other caller's marker can come in between."""
        packed: list[bytes] = []
        for start in range(0, len(store_ids), _CHANNELS_PER_COMMAND):
            chunk = store_ids[start : start + _CHANNELS_PER_COMMAND]
            packed += connection.pack_command(command, *(self._prefix + each for each in chunk))
        await self._write(connection, packed)

    async def _write(self, connection: AbstractConnection, packed: list[bytes]) -> None:
        if not connection.is_connected:  # the library would connect anew, unsubscribed
            raise ConnectionError("the link was lost")
        if packed:
            await connection.send_packed_command(b"".join(packed))

    async def _marker(self, connection: AbstractConnection) -> None:
        """Wait until Redis has answered everything sent before: replies come in order."""
        name = b"m%d" % random.getrandbits(64)
        self._markers[name] = asyncio.get_running_loop().create_future()
        try:
            await self._write(connection, connection.pack_command("PING", name))
            await self._markers[name]
        finally:
            del self._markers[name]

    async def _read(
        self, connection: AbstractConnection, deliver: Deliver, nudged: Callable[[], None]
    ) -> None:
        prefix = self._prefix.encode()
        while True:
            reply = await connection.read_response()
            self._heard = True
            if isinstance(reply, bytes):  # the PONG of a connection without subscriptions
                self._answered(reply)
            elif reply[0] == b"pong":
                self._answered(reply[1])
            elif reply[0] == b"message" and reply[1].startswith(prefix):
                store_id = reply[1][len(prefix) :].decode(errors="replace")
                seq, _, event = reply[2].partition(b" ")
                if store_id == EVERY:
                    if reply[2] != self._name:
                        nudged()
                elif len(event) > MAX_EVENT or not seq.isdigit() or len(seq) > 18:
                    log.warning("ignored a message of %d bytes on %s", len(reply[2]), store_id)
                else:
                    deliver(store_id, int(seq), event)

    def _answered(self, name: bytes) -> None:
        marker = self._markers.get(name)
        if marker is not None and not marker.done():
            marker.set_result(None)

    async def _keep_alive(self, connection: AbstractConnection) -> None:
        """Find a half-open link: something must be heard between two pings."""
        while True:
            self._heard = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self._keepalive_s):
                    await self._write(connection, connection.pack_command("PING", b"alive"))
                    await self._broken.wait()
            if self._broken.is_set():
                raise ConnectionError(f"no answer within {self._deadline_s:g} s")
            if not self._heard:
                raise ConnectionError(f"no answer for {self._keepalive_s:g} s")

    def _down(self, error: BaseException) -> None:
        if self._said is not False:
            log.warning(
                "Redis lost for notifications: %s; clients are served from the table", error
            )
        self._said = False

    def _forget(self) -> None:
        self._connection = None
        self.is_up = False
        for marker in self._markers.values():
            if not marker.done():
                marker.set_exception(ConnectionError("the link was lost"))
                marker.exception()
