"""To which servers one subscribes: to any one of them, or, for sharded pub/sub, to each master.

Plain pub/sub of a cluster tells every message to every node. Since Redis 7 a channel can have a
slot, as a key has: its messages stay with the master of that slot (and its replicas). All servers
must go the same way, or they do not hear each other, so what the masters can do is what decides;
and it is asked again, as a cluster may be upgraded node by node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from solocron.errors import LockUnavailable
from solocron.locks.connector import Connector, ask_once, connect
from solocron.locks.slots import Node, SlotMap

log = logging.getLogger("solocron.notifications")

_ANY = Node("", 0)


class Sharding:
    """Whether notifications go by sharded pub/sub: what has no `slots` is no cluster, and in a
    cluster all masters that answer must know it. `channel` is one on which nobody listens;
    `deadline_s` bounds asking, in s; `changed` is called when the answer is another one."""

    def __init__(
        self, slots: SlotMap | None, *, channel: str, deadline_s: float, changed: Callable[[], None]
    ) -> None:
        self._slots = slots
        self._changed = changed
        self._channel = channel
        self._deadline_s = deadline_s
        self._known: bool | None = None
        self._doubted = False
        self._asking = asyncio.Lock()

    def doubt(self) -> None:
        """Ask anew before it is next used."""
        self._doubted = True

    async def ask(self) -> bool:
        """Whether sharded pub/sub is used. Raises LockUnavailable when no master answers."""
        if self._slots is None:
            return False
        if self._known is None or self._doubted:
            async with self._asking:
                if self._known is None or self._doubted:
                    self._known = await self._ask(self._slots)
                    self._doubted = False
        return self._known

    async def _ask(self, slots: SlotMap) -> bool:
        await slots.refresh()
        answers = await asyncio.gather(*(self._knows(slots, node) for node in slots.nodes))
        if all(each is None for each in answers):
            raise LockUnavailable(f"none of {len(answers)} masters of the Redis cluster answers")
        sharded = False not in answers
        if sharded is not self._known:
            way = "sharded" if sharded else "plain"
            log.info("Notifications go through the Redis cluster by %s pub/sub", way)
            self._changed()
        return sharded

    async def _knows(self, slots: SlotMap, node: Node) -> bool | None:
        """Whether a master knows it, and lets us; None: it does not say."""
        command = ("SPUBLISH", self._channel, "")
        try:
            await ask_once(slots.pool(node), self._deadline_s / 3, command)
        except (AskError, ClusterDownError):  # not for this channel, or not now
            return True
        except NoPermissionError as error:
            if self._known is None:
                log.warning(
                    "Redis %s: %s; give the user +spublish +ssubscribe +sunsubscribe, or each "
                    "notification goes through every node", node, error
                )  # fmt: skip
            return False
        except ResponseError as error:
            return False if "unknown command" in str(error).lower() else None
        except (RedisError, OSError, TimeoutError):
            return None
        return True


class Route(Protocol):
    """The servers to subscribe to, and which of them has a channel, by which commands."""

    sharded: bool

    async def stands(self) -> bool:
        """Whether this is still the way to go. Raises LockUnavailable."""

    async def nodes(self) -> Sequence[Node]:
        """All servers to subscribe to. Raises LockUnavailable."""

    def owner(self, slot: int) -> Node | None:
        """The server that has the channels of a slot; None: there is none."""

    async def open(self, node: Node) -> AbstractConnection:
        """A new connection. Raises RedisError, OSError or TimeoutError."""

    def doubt(self) -> None:
        """Who has which channel may have changed."""

    def review(self) -> None:
        """All this may have changed."""

    def failed(self, node: Node, error: BaseException) -> None:
        """A server could not be connected to, or was lost."""

    def moved(self, slot: int, node: Node) -> None:
        """A slot has another server than was thought."""


class OneServer:
    """One server has all channels: whichever `connector` opens."""

    sharded = False

    def __init__(self, connector: Connector, sharding: Sharding) -> None:
        self._connector = connector
        self._sharding = sharding

    async def stands(self) -> bool:
        return not await self._sharding.ask()

    async def nodes(self) -> Sequence[Node]:
        return (_ANY,)

    def owner(self, slot: int) -> Node | None:
        return _ANY

    async def open(self, node: Node) -> AbstractConnection:
        connection = await self._connector.open()
        self._sharding.doubt()  # it may have been started anew, as a newer one
        return connection

    def doubt(self) -> None:
        pass

    def review(self) -> None:
        self._sharding.doubt()

    def failed(self, node: Node, error: BaseException) -> None:
        pass  # a new connection looks for another server by itself

    def moved(self, slot: int, node: Node) -> None:
        pass


class Shards:
    """Each master of a cluster has the channels of its slots."""

    sharded = True

    def __init__(self, slots: SlotMap, sharding: Sharding) -> None:
        self._slots = slots
        self._sharding = sharding

    async def stands(self) -> bool:
        return await self._sharding.ask()

    async def nodes(self) -> Sequence[Node]:
        await self._slots.refresh()
        return self._slots.nodes

    def owner(self, slot: int) -> Node | None:
        return self._slots.owner(slot)

    async def open(self, node: Node) -> AbstractConnection:
        connection = await connect(self._slots.pool(node))
        self._sharding.doubt()  # it may have been started anew, as an older one
        return connection

    def doubt(self) -> None:
        self._slots.doubt()

    def review(self) -> None:
        self._slots.doubt()
        self._sharding.doubt()

    def failed(self, node: Node, error: BaseException) -> None:
        self._slots.distrust(node)
        if isinstance(error, ResponseError):
            self._sharding.doubt()

    def moved(self, slot: int, node: Node) -> None:
        self._slots.moved(slot, node)
