"""Which node of a Redis cluster has which slot, as the nodes themselves tell.

A map that turns out to be old (a redirection, a node that does not answer) is asked for anew before
its next use, from whichever node answers. What a redirection says is believed at once, and its
target is asked first: for a while the other nodes may not have heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from redis.asyncio import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import AskError, RedisError

from solocron.errors import LockUnavailable
from solocron.locks.address import Address, make_pool
from solocron.locks.connector import ask_once
from solocron.locks.session import name_of

_SLOTS = 16_384
_MAX_NODES = 2000
_MAX_RANGES = 20_000


class Node(NamedTuple):
    """A server of the cluster, as the others name it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SlotRange(NamedTuple):
    """Slots `first` to `last` are `node`'s."""

    first: int
    last: int
    node: Node


def slot_of(key: str) -> int:
    """The slot of a key or of a channel of sharded pub/sub."""
    slot: int = key_slot(key.encode())
    return slot


def read_slots(reply: Any, asked: str) -> list[SlotRange]:
    """The answer to CLUSTER SLOTS; a node without a name is the `asked` host. Raises ValueError
    for one that is no map."""
    if not isinstance(reply, list) or not 0 < len(reply) <= _MAX_RANGES:
        raise ValueError("no slot is served")
    ranges = []
    for first, last, (host, port, *_), *_ in reply:
        name = host.decode(errors="replace")[:255] if host else asked
        ranges.append(SlotRange(int(first), int(last), Node(name, int(port))))
    if not all(0 <= each.first <= each.last < _SLOTS for each in ranges):
        raise ValueError("a slot is none")
    if len({each.node for each in ranges}) > _MAX_NODES:
        raise ValueError(f"more than {_MAX_NODES} nodes")
    return ranges


def target_of(redirection: AskError, asked: Node) -> Node:
    """Where a redirection sends a command that was sent to `asked`."""
    return Node(redirection.host or asked.host, int(redirection.port))


class SlotMap:
    """The map of the cluster at `address`. `nodes` are those that have slots.

    `listeners` are called whenever the map has changed. `deadline_s` bounds asking for it, in s.
    """

    def __init__(self, address: Address, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._seed = address.urls[0]
        # Whom to ask for the map, those that failed last.
        self._known = {
            _node(pool): pool for pool in (make_pool(u, deadline_s) for u in address.urls)
        }
        self._named = frozenset(self._known)
        self._owners: list[Node | None] = [None] * _SLOTS
        self.nodes: tuple[Node, ...] = ()
        self._stale = True
        self._learning = asyncio.Lock()
        self.listeners: list[Callable[[], None]] = []

    def owner(self, slot: int) -> Node | None:
        """The node that has a slot; None: there is none, or no map yet."""
        return self._owners[slot]

    def pool(self, node: Node) -> ConnectionPool:
        """A source of connections to a node."""
        pool = make_pool(self._seed, self._deadline_s)
        pool.connection_kwargs.update(host=node.host, port=node.port)
        return pool

    async def refresh(self) -> None:
        """See that the map is not known to be old. Raises LockUnavailable."""
        if self._stale or self._learning.locked():
            async with self._learning:
                if self._stale:
                    await self._learn()

    def doubt(self) -> None:
        """Ask for the map before its next use."""
        self._stale = True

    def distrust(self, node: Node) -> None:
        """Ask others than this node, which did not answer well, before the map's next use."""
        self._stale = True
        self._last(node)

    def _last(self, node: Node) -> None:
        if node in self._known:
            self._known[node] = self._known.pop(node)

    def moved(self, slot: int, node: Node) -> None:
        """A redirection said that the slot is now `node`'s."""
        self._stale = True
        pool = self._known.pop(node, None) or self.pool(node)
        self._known = {node: pool, **self._known}
        if 0 <= slot < _SLOTS and self._owners[slot] != node:
            self._owners[slot] = node
            if node not in self.nodes:
                self.nodes += (node,)
            self._tell()

    async def _learn(self) -> None:
        """Ask whom we know, until one answers. Raises LockUnavailable."""
        error: Exception = LookupError("no node is known")
        self._stale = False  # what turns out to be old from here on is older than the answer
        for node, pool in list(self._known.items()):
            try:
                (reply,) = await ask_once(pool, self._deadline_s / 3, ("CLUSTER", "SLOTS"))
                self._use(read_slots(reply, node.host))
                return
            except (RedisError, OSError, TimeoutError, TypeError, ValueError) as failed:
                error = failed
                self._last(node)
        self._stale = True
        raise LockUnavailable(
            f"no node of the Redis cluster tells its slots: {name_of(error)}; where Redis is one "
            "server, give redis:// and no REDIS_CLUSTER"
        )

    def _use(self, ranges: list[SlotRange]) -> None:
        owners: list[Node | None] = [None] * _SLOTS
        for first, last, node in ranges:
            owners[first : last + 1] = [node] * (last + 1 - first)
        changed, self._owners = owners != self._owners, owners
        self.nodes = tuple(dict.fromkeys(each.node for each in ranges))
        named = {*self._named, *self.nodes}
        self._known = {node: pool for node, pool in self._known.items() if node in named}
        for node in self.nodes:
            if node not in self._known:
                self._known[node] = self.pool(node)
        if changed:
            self._tell()

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()


def _node(pool: ConnectionPool) -> Node:
    options = pool.connection_kwargs
    return Node(str(options.get("host", "localhost")), int(options.get("port", 6379)))
