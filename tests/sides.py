"""The fanout by itself: one server's end of it, and what Redis has of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.notifications.fanout import Fanout


class Side:
    """One server's end of the fanout, and what it heard."""

    def __init__(self, url: str, keepalive_s: float = 5.0) -> None:
        self.fanout = Fanout(
            url, environment="", clock=SystemClock(), deadline_s=0.5, keepalive_s=keepalive_s
        )
        self.heard: list[tuple[str, int, bytes]] = []
        self.changed: list[set[str]] = []
        self.nudges = 0

    def _changed(self, stores: Collection[str]) -> None:
        self.changed.append(set(stores))

    def _nudged(self) -> None:
        self.nudges += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Side]:
        task = asyncio.create_task(
            self.fanout.run(
                lambda *message: self.heard.append(message), self._changed, self._nudged
            )
        )
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def up(self, state: bool = True, within_s: float = 10) -> None:
        async with asyncio.timeout(within_s):
            while self.fanout.is_up is not state:
                await asyncio.sleep(0.005)

    async def hears(self, message: tuple[str, int, bytes]) -> None:
        async with asyncio.timeout(5):
            while message not in self.heard:
                await asyncio.sleep(0.005)


def watched(side: Side) -> set[str]:
    """The stores a side watches."""
    return set(side.fanout._subscriptions.watched)


def subscribed(redis: RedisServer) -> set[str]:
    """The stores somebody is subscribed to at Redis."""
    channels = redis.cli("PUBSUB", "CHANNELS").split()
    return {each.rpartition(":")[2] for each in channels}
