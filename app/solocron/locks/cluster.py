"""A Redis cluster: one link per node, and the map that says which node has a key's slot.

All keys of a job lie in one slot (its companion keys carry the lock key as their hash tag), so
every script runs on one node. A map that turns out to be old (a redirection, a node that does not
answer) is asked for anew, from whichever node answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from redis.asyncio import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from solocron.clock import Clock
from solocron.errors import LockReadOnly, LockUnavailable
from solocron.locks.address import Address, make_pool, parse_address
from solocron.locks.connector import Connector, ask_once, connect
from solocron.locks.link import Reachability, RedisLink, within
from solocron.locks.session import Command, name_of

_T = TypeVar("_T")

_MAX_NODES = 2000
_MAX_RANGES = 20_000
_PAUSE_S = 0.05


class Node(NamedTuple):
    """A server of the cluster, as the others name it."""

    host: str
    port: int


class SlotRange(NamedTuple):
    """Slots `first` to `last` are `node`'s."""

    first: int
    last: int
    node: Node


def read_slots(reply: Any, asked: str) -> list[SlotRange]:
    """The answer to CLUSTER SLOTS; a node without a name is the `asked` host. Raises ValueError
    for one that is no map."""
    if not isinstance(reply, list) or not 0 < len(reply) <= _MAX_RANGES:
        raise ValueError("no slot is served")
    ranges = []
    for first, last, (host, port, *_), *_ in reply:
        name = host.decode(errors="replace")[:255] if host else asked
        ranges.append(SlotRange(int(first), int(last), Node(name, int(port))))
    if len({each.node for each in ranges}) > _MAX_NODES:
        raise ValueError(f"more than {_MAX_NODES} nodes")
    return ranges


class ClusterLink:
    """What a `RedisLink` is to one server, for a cluster: `call` sends a command to the node that
    has `key`, or, without one, to any."""

    splits = True  # keys of two jobs may lie in two slots, and no script takes both

    def __init__(
        self, address: Address, *, clock: Clock, deadline_s: float, scripts: Sequence[str],
        reachability: Reachability,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._deadline_s = deadline_s
        self._scripts = scripts
        self._reachability = reachability
        self._seed = address.urls[0]
        # Whom to ask for the map, those that failed last.
        self._known = {
            _node(pool): pool for pool in (make_pool(u, deadline_s) for u in address.urls)
        }
        self._links: dict[Node, RedisLink] = {}
        self._ranges: list[SlotRange] = []
        self._stale = True
        self._learning = asyncio.Lock()

    @property
    def is_up(self) -> bool:
        """Whether the last exchange with each node worked."""
        return self._reachability.is_up

    async def servers(self) -> Sequence[RedisLink]:
        """The nodes that hold keys. Raises LockUnavailable."""
        await self._within(lambda path: self._fresh())
        return [self._link(node) for node in dict.fromkeys(each.node for each in self._ranges)]

    async def call(self, *args: str | bytes | int, key: str = "") -> Any:
        """Send an idempotent command to the node of `key`. Raises as `RedisLink.call`."""
        return await self._within(
            lambda path: self._routed(path, key, lambda link, asking: link.exchange(args, asking))
        )

    async def call_all(self, commands: Sequence[Command], key: str = "") -> list[Any]:
        """As `call`, in one write: many commands that any one node may take, or a transaction on
        `key`."""
        return await self._within(
            lambda path: self._routed(
                path, key, lambda link, asking: link.exchange_all(commands, asking)
            )
        )

    async def _within(self, work: Callable[[list[Node]], Awaitable[_T]]) -> _T:
        """`work` notes whom it asked, so that a node without an answer is not asked first again."""
        path: list[Node] = []
        try:
            return await within(self._deadline_s, self._clock, lambda: work(path))
        except TimeoutError:
            if path:
                self._link(path[-1]).timed_out()
                self._distrust(path[-1])
            raise LockUnavailable(f"Redis gave no answer within {self._deadline_s:g} s") from None

    async def _routed(
        self, path: list[Node], key: str, send: Callable[[RedisLink, bool], Awaitable[_T]]
    ) -> _T:
        """Send to the node of `key`, after redirections and with a new map; a deadline ends it."""
        target: Node | None = None
        asking = False
        while True:
            if target is None:
                target = await self._node_of(key)
            path.append(target)
            try:
                return await send(self._link(target), asking)
            except MovedError as moved:
                self._stale = True
                target, asking = _target(moved, target), False
            except AskError as moving:
                target, asking = _target(moving, target), True
            except LockReadOnly:
                self._distrust(target)
                raise
            except TryAgainError:  # a slot on the move takes no script of several keys
                self._stale = True
                raise LockReadOnly(f"Redis refuses writes: the slot of {key} is moving") from None
            except LockUnavailable:
                self._distrust(target)
                target, asking = None, False
                await asyncio.sleep(_PAUSE_S)

    async def _fresh(self) -> None:
        """See that the map is not known to be old."""
        if self._stale:
            async with self._learning:
                if self._stale:
                    await self._learn()

    async def _node_of(self, key: str) -> Node:
        await self._fresh()
        if not key:
            return self._ranges[0].node
        slot = key_slot(key.encode())
        for first, last, node in self._ranges:
            if first <= slot <= last:
                return node
        raise LockReadOnly(f"Redis refuses writes: no node has slot {slot} of {key}")

    async def _learn(self) -> None:
        """Ask for the map: whom we know, until one answers. Raises LockUnavailable."""
        error: Exception = LookupError("no node is known")
        for node, pool in list(self._known.items()):
            try:
                (reply,) = await ask_once(pool, self._deadline_s / 3, ("CLUSTER", "SLOTS"))
                self._use(read_slots(reply, node.host))
                return
            except (RedisError, OSError, TimeoutError, TypeError, ValueError) as failed:
                error = failed
                self._last(node)
        reason = name_of(error)
        self._reachability.fails("", reason)
        raise LockUnavailable(
            f"no node of the Redis cluster tells its slots: {reason}; where Redis is one server, "
            "give redis:// and no REDIS_CLUSTER"
        )

    def _use(self, ranges: list[SlotRange]) -> None:
        """Take a new map; that a node without slots is lost does not matter."""
        self._ranges, self._stale = ranges, False
        self._reachability.forget("")
        nodes = {each.node for each in ranges}
        for node in nodes - self._known.keys():
            self._known[node] = self._pool(node)
        for node in self._links.keys() - nodes:
            self._reachability.forget(str(node))

    def _link(self, node: Node) -> RedisLink:
        if node not in self._links:
            self._links[node] = RedisLink(
                partial(connect, self._pool(node)), clock=self._clock,
                deadline_s=self._deadline_s, scripts=self._scripts,
                reachability=self._reachability, server=str(node),
            )  # fmt: skip
        return self._links[node]

    def _pool(self, node: Node) -> ConnectionPool:
        pool = make_pool(self._seed, self._deadline_s)
        pool.connection_kwargs.update(host=node.host, port=node.port)
        return pool

    def _distrust(self, node: Node) -> None:
        """Ask others for the map before the next command."""
        self._stale = True
        self._last(node)

    def _last(self, node: Node) -> None:
        if node in self._known:
            self._known[node] = self._known.pop(node)

    async def close(self) -> None:
        """Close all connections. Safe to call twice; a later call connects again."""
        for link in list(self._links.values()):
            await link.close()


Link = RedisLink | ClusterLink


def make_link(
    url: str, *, clock: Clock, deadline_s: float, scripts: Sequence[str] = (),
    purpose: str | None = None,
) -> Link:  # fmt: skip
    """The link to what `url` names; `purpose` is what its log lines say Redis is for (None: it
    logs nothing). Raises ConfigError."""
    address, reachability = parse_address(url), Reachability(purpose)
    if address.kind == "cluster":
        return ClusterLink(
            address, clock=clock, deadline_s=deadline_s, scripts=scripts,
            reachability=reachability,
        )  # fmt: skip
    connector = Connector(address, deadline_s=deadline_s)
    return RedisLink(
        connector.open,
        clock=clock,
        deadline_s=deadline_s,
        scripts=scripts,
        reachability=reachability,
    )


def _node(pool: ConnectionPool) -> Node:
    options = pool.connection_kwargs
    return Node(str(options.get("host", "localhost")), int(options.get("port", 6379)))


def _target(redirection: AskError, asked: Node) -> Node:
    return Node(redirection.host or asked.host, int(redirection.port))
