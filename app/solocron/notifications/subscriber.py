"""One connection to Redis that subscribes, from when it is open until it is lost."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, RedisError

from solocron.locks.slots import slot_of

_CHANNELS_PER_COMMAND = 1000
_PER_SECOND = 10_000  # channels that are subscribed to in a second at least

Hear = Callable[[bytes, bytes], None]
Gone = Callable[[Collection[str], MovedError | None], None]


class Subscriber:
    """Owns `connection`; run `run()` as a task.

    `sharded`: its channels are those of sharded pub/sub, which a server has for its own slots only.
    `hear(channel, data)` is called for each message, `gone(channels, moved)` when the server does
    not have channels (any more) that were asked for: their slot is another's, `moved` may say
    whose. `deadline_s` bounds subscribing, in s; a silent link is lost after two `keepalive_s`.
    """

    def __init__(
        self, connection: AbstractConnection, *, sharded: bool, hear: Hear, gone: Gone,
        deadline_s: float, keepalive_s: float,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._sharded = sharded
        self._hear = hear
        self._gone = gone
        self._deadline_s = deadline_s
        self._keepalive_s = keepalive_s
        self._slots: dict[str, int] = {}  # of each channel
        self._channels: defaultdict[int, set[str]] = defaultdict(set)  # in each slot
        self._markers: dict[bytes, asyncio.Future[None]] = {}
        self._heard = False
        self._broken = asyncio.Event()
        self._why = ""

    @property
    def channels(self) -> Collection[str]:
        """What was asked for here, and not refused."""
        return self._slots.keys()

    @property
    def is_broken(self) -> bool:
        """Whether it was given up: `run` ends."""
        return self._broken.is_set()

    async def run(self) -> None:
        """Read until the link is lost, which raises RedisError, OSError or TimeoutError in an
        exception group."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._keep_alive())
        finally:
            for marker in self._markers.values():
                if not marker.done():
                    marker.set_exception(ConnectionError("the link was lost"))
                    marker.exception()
            await self._connection.disconnect(nowait=True)

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Returns when the server has answered: channels it refused are gone. A server that does
        not answer loses the link."""
        fresh = [each for each in channels if each not in self._slots]
        for channel in fresh:
            slot = slot_of(channel) if self._sharded else 0
            self._slots[channel] = slot
            self._channels[slot].add(channel)
        try:
            async with asyncio.timeout(self._deadline_s + len(fresh) / _PER_SECOND):
                await self._send("SUBSCRIBE", fresh)
                await self._marker()
        except (RedisError, OSError, TimeoutError):
            self.give_up(f"no answer within {self._deadline_s:g} s")

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Give up those of the channels that were asked for here."""
        mine = [each for each in channels if self._drop(each)]
        if not mine:
            return
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._send("UNSUBSCRIBE", mine)
        except (RedisError, OSError, TimeoutError):
            self.give_up(f"no answer within {self._deadline_s:g} s")

    def give_up(self, why: str) -> None:
        """Have `run` end."""
        self._why = self._why or why
        self._broken.set()

    def _drop(self, channel: str) -> bool:
        slot = self._slots.pop(channel, None)
        if slot is None:
            return False
        self._channels[slot].discard(channel)
        if not self._channels[slot]:
            del self._channels[slot]
        return True

    # -- out -------------------------------------------------------------------------------

    async def _send(self, command: str, channels: Sequence[str]) -> None:
        """One write, so that no other caller's marker can come in between."""
        packed: list[bytes] = []
        for some in self._together(channels):
            verb = f"S{command}" if self._sharded else command
            packed += self._connection.pack_command(verb, *some)
        await self._write(packed)

    def _together(self, channels: Sequence[str]) -> Iterable[Sequence[str]]:
        """Channels that one command may name: of one slot, where they are sharded."""
        groups = defaultdict[int, list[str]](list)
        for position, channel in enumerate(channels):
            apart = slot_of(channel) if self._sharded else position // _CHANNELS_PER_COMMAND
            groups[apart].append(channel)
        return groups.values()

    async def _write(self, packed: list[bytes]) -> None:
        if not self._connection.is_connected:  # the library would connect anew, unsubscribed
            raise ConnectionError("the link was lost")
        if packed:
            await self._connection.send_packed_command(b"".join(packed))

    async def _marker(self) -> None:
        """Wait until Redis has answered everything sent before: replies come in order."""
        name = b"m%d" % random.getrandbits(64)
        self._markers[name] = asyncio.get_running_loop().create_future()
        try:
            await self._write(self._connection.pack_command("PING", name))
            await self._markers[name]
        finally:
            del self._markers[name]

    # -- in --------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            try:
                reply = await self._connection.read_response()
            except MovedError as moved:
                self._heard = True
                self._lose(list(self._channels.get(moved.slot_id, ())), moved)
                continue
            self._heard = True
            if isinstance(reply, bytes):  # the PONG of a connection without subscriptions
                self._answered(reply)
            elif reply[0] in (b"message", b"smessage"):
                self._hear(reply[1], reply[2])
            elif reply[0] == b"pong":
                self._answered(reply[1])
            elif reply[0] == b"sunsubscribe" and reply[1] is not None:
                self._lose([reply[1].decode(errors="replace")], None)

    def _lose(self, channels: Sequence[str], moved: MovedError | None) -> None:
        """The server does not have them; those that were given up here are of no interest."""
        lost = [each for each in channels if self._drop(each)]
        if lost or moved is not None:
            self._gone(lost, moved)

    def _answered(self, name: bytes) -> None:
        marker = self._markers.get(name)
        if marker is not None and not marker.done():
            marker.set_result(None)

    async def _keep_alive(self) -> None:
        """Find a half-open link: something must be heard between two pings."""
        while True:
            self._heard = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self._keepalive_s):
                    await self._write(self._connection.pack_command("PING", b"alive"))
                    await self._broken.wait()
            if self._broken.is_set():
                raise ConnectionError(self._why)
            if not self._heard:
                raise ConnectionError(f"no answer for {self._keepalive_s:g} s")
