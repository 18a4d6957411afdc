"""A Redis cluster: one link per node, and the map that says which node has a key's slot.

All keys of a job lie in one slot (its companion keys carry the lock key as their hash tag), so
every script runs on one node.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import AskError, MovedError, TryAgainError

from solocron.clock import Clock
from solocron.errors import LockReadOnly, LockUnavailable
from solocron.locks.address import Address, parse_address
from solocron.locks.connector import Connector, connect
from solocron.locks.link import REDIRECTS, Reachability, RedisLink, within
from solocron.locks.session import Command
from solocron.locks.slots import Node, SlotMap, slot_of, target_of

_T = TypeVar("_T")

_PAUSE_S = 0.05


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
        self._links: dict[Node, RedisLink] = {}
        self.slots = SlotMap(address, deadline_s=deadline_s)
        self.slots.listeners.append(self._forget)

    @property
    def is_up(self) -> bool:
        """Whether the last exchange with each node worked."""
        return self._reachability.is_up

    @property
    def lost_ms(self) -> float | None:
        """Since when an exchange with some node failed (UTC epoch ms), or None."""
        return self._reachability.lost_ms

    async def servers(self) -> Sequence[RedisLink]:
        """The nodes that hold keys. Raises LockUnavailable."""
        await self._within(lambda waiting: self._fresh())
        return [self._link(node) for node in self.slots.nodes]

    async def call(self, *args: str | bytes | int, key: str = "") -> Any:
        """Send an idempotent command to the node of `key`. Raises as `RedisLink.call`."""
        return await self._within(
            lambda waiting: self._routed(
                waiting, key, lambda link, asking: link.exchange(args, asking)
            )
        )

    async def call_all(self, commands: Sequence[Command], keys: Sequence[str] = ()) -> list[Any]:
        """As `call`, for many commands: each to the node of its key, in one write per node, and
        those of a node in order; or, without keys, in one write to any node."""
        if keys:
            return await self._within(lambda waiting: self._spread(waiting, commands, keys))
        return await self._within(
            lambda waiting: self._routed(
                waiting, "", lambda link, asking: link.exchange_all(commands)
            )
        )

    async def _within(self, work: Callable[[list[Node]], Awaitable[_T]]) -> _T:
        """`work` notes whose answer it waits for, so that a node without one is not asked first
        again."""
        waiting: list[Node] = []
        try:
            return await within(self._deadline_s, self._clock, lambda: work(waiting))
        except TimeoutError:
            for node in waiting:
                self._link(node).timed_out()
                self.slots.distrust(node)
            raise LockUnavailable(f"Redis gave no answer within {self._deadline_s:g} s") from None

    async def _routed(
        self, waiting: list[Node], key: str, send: Callable[[RedisLink, bool], Awaitable[_T]]
    ) -> _T:
        """Send to the node of `key`, after redirections and with a new map; a deadline ends it."""
        target: Node | None = None
        asking = False
        while True:
            if target is None:
                target = await self._node_of(key)
            try:
                return await _noted(waiting, target, send(self._link(target), asking))
            except MovedError as moved:
                target, asking = self._moved(moved, target), False
            except AskError as moving:
                target, asking = target_of(moving, target), True
            except LockReadOnly:
                self.slots.distrust(target)
                raise
            except TryAgainError:  # a slot on the move takes no script of several keys
                self.slots.doubt()
                raise LockReadOnly(f"Redis refuses writes: the slot of {key} is moving") from None
            except LockUnavailable:
                self.slots.distrust(target)
                target, asking = None, False
                await asyncio.sleep(_PAUSE_S)

    async def _spread(
        self, waiting: list[Node], commands: Sequence[Command], keys: Sequence[str]
    ) -> list[Any]:
        """Send each to the node of its key; what was refused as moved, or lost with its node, again
        by a new map; a deadline ends it."""
        replies: list[Any] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        while left:
            groups = defaultdict[Node, list[int]](list)
            await self._fresh()
            for index in left:
                groups[self._owner(keys[index])].append(index)
            await asyncio.gather(
                *(self._batch(waiting, node, commands, some, replies)
                  for node, some in groups.items())
            )  # fmt: skip
            left = [index for index in left if isinstance(replies[index], Exception)]
            for index in left:
                if isinstance(replies[index], LockReadOnly):
                    raise replies[index]
            if not all(isinstance(replies[index], MovedError) for index in left):
                await asyncio.sleep(_PAUSE_S)
        return replies

    async def _batch(
        self, waiting: list[Node], node: Node, commands: Sequence[Command], some: Sequence[int],
        replies: list[Any],
    ) -> None:  # fmt: skip
        """Send `some` of the commands to a node: what each was answered, or why there is no answer,
        goes into `replies`."""
        batch = [commands[index] for index in some]
        try:
            answers = await _noted(waiting, node, self._link(node).exchange_all(batch))
        except LockUnavailable as error:
            self.slots.distrust(node)
            answers = [error] * len(some)
        for index, answer in zip(some, answers, strict=True):
            replies[index] = answer
            if isinstance(answer, MovedError):  # which is an AskError
                self._moved(answer, node)
            elif isinstance(answer, AskError):
                target = target_of(answer, node)
                replies[index] = await self._asked(waiting, target, commands[index])
            elif isinstance(answer, REDIRECTS):
                self.slots.doubt()

    async def _asked(self, waiting: list[Node], target: Node, command: Command) -> Any:
        """The answer of the node that a command's slot is moving to, or why there is none."""
        try:
            return await _noted(waiting, target, self._link(target).exchange(command, asking=True))
        except (*REDIRECTS, LockUnavailable) as error:
            return error

    async def _fresh(self) -> None:
        """See that the map is not known to be old."""
        try:
            await self.slots.refresh()
        except LockUnavailable as error:
            self._reachability.fails("", str(error))
            raise
        self._reachability.forget("")

    async def _node_of(self, key: str) -> Node:
        await self._fresh()
        return self._owner(key)

    def _owner(self, key: str) -> Node:
        if not key:
            return self.slots.nodes[0]
        slot = slot_of(key)
        node = self.slots.owner(slot)
        if node is None:
            raise LockReadOnly(f"Redis refuses writes: no node has slot {slot} of {key}")
        return node

    def _moved(self, moved: MovedError, asked: Node) -> Node:
        """Note where the slot is now; that node."""
        target = target_of(moved, asked)
        self.slots.moved(moved.slot_id, target)
        return target

    def _forget(self) -> None:
        """That a node without slots is lost does not matter."""
        for node in self._links.keys() - set(self.slots.nodes):
            self._reachability.forget(str(node))

    def _link(self, node: Node) -> RedisLink:
        if node not in self._links:
            self._links[node] = RedisLink(
                partial(connect, self.slots.pool(node)), clock=self._clock,
                deadline_s=self._deadline_s, scripts=self._scripts,
                reachability=self._reachability, server=str(node),
            )  # fmt: skip
        return self._links[node]

    async def close(self) -> None:
        """Close all connections. Safe to call twice; a later call connects again."""
        for link in list(self._links.values()):
            await link.close()


Link = RedisLink | ClusterLink


def make_link(
    url: str, *, clock: Clock, deadline_s: float, scripts: Sequence[str] = (),
    purpose: str | None = None, alone: str = "",
) -> Link:  # fmt: skip
    """The link to what `url` names; `purpose` is what its log lines say Redis is for (None: it
    logs nothing), `alone` how that goes on without. Raises ConfigError."""
    address, reachability = parse_address(url), Reachability(purpose, clock, alone)
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


async def _noted(waiting: list[Node], node: Node, answer: Awaitable[_T]) -> _T:
    """Await a node's answer; a node stays among the `waiting` ones when that is cut off."""
    waiting.append(node)
    try:
        reply = await answer
    except Exception:
        waiting.remove(node)
        raise
    waiting.remove(node)
    return reply
