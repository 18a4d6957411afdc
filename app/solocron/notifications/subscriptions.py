"""Which channel is subscribed to at which server, while servers come, go and pass slots on.

What is watched is compared with what the links have, and what is missing is asked for: at a start,
when a link came or went, and when a slot has moved. A channel whose slot moved is asked for at its
new server while the old one, if it still thinks the slot its own, may go on sending: it
unsubscribes by itself when it hears of the move. So no message is lost between a publisher and a
subscriber who hear of it at different times: from when the new subscription is in force one of the
two servers passes it on, and for what was published before, the table is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from redis.exceptions import MovedError, RedisError

from solocron.errors import LockUnavailable
from solocron.locks.slots import Node, slot_of, target_of
from solocron.notifications.routes import Route
from solocron.notifications.subscriber import Hear, Subscriber

log = logging.getLogger("solocron.notifications")

RECONNECT_S = (0.1, 1.0)
_REVIEW_S = (15.0, 30.0)  # how often all is looked at although nothing is known to have changed
_PAUSE_S = 0.02
_MOVES = 5  # of one channel while it is subscribed to

OnChange = Callable[[Collection[str]], None]


class Subscriptions:
    """Keeps the channels `prefix` + store subscribed to for the stores that are watched.

    `deadline_s` bounds connecting and subscribing; a silent link is lost after two `keepalive_s`.
    `is_up`: every link is there, and no message is missed.
    """

    def __init__(self, prefix: str, *, deadline_s: float, keepalive_s: float) -> None:
        self._prefix = prefix
        self._start = len(prefix)
        self._deadline_s = deadline_s
        self._keepalive_s = keepalive_s
        self._watched: dict[str, int] = {}  # stores, and the slots of their channels
        self._missed: set[str] = set()  # of them, those whose messages may be missed
        self._links: dict[Node, Subscriber] = {}
        self._nodes: Sequence[Node] = ()  # to which there should be links
        self._served: set[Node] = set()
        self._route: Route | None = None
        self._hear: Hear = lambda channel, data: None
        self._on_change: OnChange = lambda stores: None
        self._look = asyncio.Event()
        self._said: bool | None = None
        self.is_up = False

    @property
    def watched(self) -> Collection[str]:
        """The stores that are watched."""
        return self._watched.keys()

    def look(self) -> None:
        """Something may have changed."""
        self._look.set()

    async def watch(self, store_ids: Iterable[str]) -> None:
        """Subscribe; returns when the subscriptions are in force, or a server is down."""
        ids = list(store_ids)
        for each in ids:
            if each not in self._watched:
                self._watched[each] = slot_of(self._prefix + each)
                self._missed.add(each)
        try:
            await self._place(ids)
            self._missed.difference_update(each for each in ids if self._in_force(each))
        finally:
            if not self._missed.isdisjoint(ids):
                self._look.set()

    async def unwatch(self, store_ids: Iterable[str]) -> None:
        """Unsubscribe from stores nobody here watches any more."""
        gone = [each for each in store_ids if self._watched.pop(each, None) is not None]
        self._missed.difference_update(gone)
        for link in list(self._links.values()):
            await link.unsubscribe([self._prefix + each for each in gone])

    # -- keeping them in force -------------------------------------------------------------

    async def run(self, route: Route, hear: Hear, on_change: OnChange) -> None:
        """Keep all subscribed to by this route, as long as it stands; reconnects by itself.

        `hear(channel, data)` is called for each message, `on_change(stores)` when subscriptions are
        lost or in force (again), of stores whose messages may have been missed.
        """
        self._route, self._hear, self._on_change = route, hear, on_change
        self._missed.update(self._watched)
        try:
            async with asyncio.TaskGroup() as group:
                tasks: set[asyncio.Task[None]] = set()
                while await self._stands(route):
                    for node in set(self._nodes) - self._served:
                        self._served.add(node)
                        task = group.create_task(self._serve(route, node))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                    await self._settle()
                    await self._rest(route)
                for task in tasks:
                    task.cancel()
        finally:
            self._route, self._nodes = None, ()
            self._served.clear()
            self._end(self._watched.keys())

    async def _stands(self, route: Route) -> bool:
        """Whether the route is still the one to take; then its nodes are known anew."""
        self._look.clear()
        try:
            if not await route.stands():
                return False
            self._nodes = await route.nodes()
        except LockUnavailable as error:
            if not self.is_up:  # what the links can do is what counts
                self.down(error)
        return True

    async def _rest(self, route: Route) -> None:
        if self._missed:  # somewhere it does not work: no hurry
            await asyncio.sleep(_PAUSE_S)
        pause, then = (_REVIEW_S, route.review) if self.is_up else (RECONNECT_S, route.doubt)
        try:
            async with asyncio.timeout(random.uniform(*pause)):
                await self._look.wait()
        except TimeoutError:
            then()

    async def _settle(self) -> None:
        """Subscribe to what is missing, and say what is in force again."""
        for node, link in list(self._links.items()):
            await link.unsubscribe(  # one that was cancelled in the middle of it
                [each for each in link.channels if each[self._start :] not in self._watched]
            )
            if node not in self._nodes and not link.channels:
                link.give_up("it has no slot any more")
        self._missed.update(each for each in self._watched if not self._in_force(each))
        wanted = list(self._missed)
        await self._place(wanted)
        back = {each for each in wanted if self._in_force(each)}
        self._missed -= back
        linked = bool(self._nodes) and all(node in self._links for node in self._nodes)
        was_up, self.is_up = self.is_up, linked and not self._missed
        if self.is_up and self._said is not True:
            log.info("Redis ready for notifications")
            self._said = True
        if back or was_up is not self.is_up:
            self._on_change(back)

    async def _place(self, store_ids: Iterable[str]) -> None:
        """Ask each store's server for its channel, and await the answers; again where it has moved
        meanwhile. A server there is no link to is left out."""
        left = list(store_ids)
        for _ in range(_MOVES):
            groups = defaultdict[Subscriber, list[str]](list)
            for each in left:
                if link := self._link_of(each):
                    groups[link].append(each)
            if not groups:
                return
            await asyncio.gather(*(self._ask(link, group) for link, group in groups.items()))
            left = [each for each in left if not self._in_force(each)]

    async def _ask(self, link: Subscriber, store_ids: Iterable[str]) -> None:
        await link.subscribe([self._prefix + each for each in store_ids if each in self._watched])

    def _link_of(self, store_id: str) -> Subscriber | None:
        slot = self._watched.get(store_id)
        if self._route is None or slot is None:
            return None
        node = self._route.owner(slot)
        link = None if node is None else self._links.get(node)
        return None if link is None or link.is_broken else link

    def _in_force(self, store_id: str) -> bool:
        link = self._link_of(store_id)
        return link is not None and self._prefix + store_id in link.channels

    # -- one server ------------------------------------------------------------------------

    async def _serve(self, route: Route, node: Node) -> None:
        """Link to a server until the link is lost, and wait a little: then another one is made."""

        def gone(channels: Collection[str], moved: MovedError | None) -> None:
            if moved is None:
                route.doubt()
            else:
                route.moved(moved.slot_id, target_of(moved, node))
            self._miss(channels)

        link: Subscriber | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await route.open(node)
            link = Subscriber(
                connection, sharded=route.sharded, hear=self._hear, gone=gone,
                deadline_s=self._deadline_s, keepalive_s=self._keepalive_s,
            )  # fmt: skip
            self._links[node] = link
            self._look.set()
            try:
                await link.run()
            finally:
                del self._links[node]
        except* (RedisError, OSError, TimeoutError) as group:
            route.failed(node, group.exceptions[0])
            self._lost(node, link.channels if link is not None else (), group.exceptions[0])
        await asyncio.sleep(random.uniform(*RECONNECT_S))
        self._served.discard(node)
        self._look.set()

    def _lost(self, node: Node, channels: Collection[str], error: BaseException) -> None:
        if channels or node in self._nodes:  # else it is not needed any more
            self.down(error)
            self._end(self._miss(channels))

    def _miss(self, channels: Collection[str]) -> Collection[str]:
        """Note that messages of these channels may be missed; the stores that are watched."""
        stores = {each[self._start :] for each in channels} & self._watched.keys()
        self._missed |= stores
        self._look.set()
        return stores

    def _end(self, stores: Collection[str]) -> None:
        was_up, self.is_up = self.is_up, False
        if was_up:
            self._on_change(stores)

    def down(self, error: BaseException) -> None:
        """Say once that Redis does not do what it should."""
        if self._said is not False:
            log.warning(
                "Redis lost for notifications: %s; clients are served from the table",
                str(error).rstrip("."),
            )
        self._said = False
