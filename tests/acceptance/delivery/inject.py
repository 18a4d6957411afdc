"""How each fault is injected, and undone."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from redis.exceptions import RedisError

from acceptance.delivery.parts import Crowd, Servers
from acceptance.delivery.plan import Fault
from faults.campaign.redis_nodes import Node


class Injector:
    """Injects faults. Two of one target wait for each other; `counts`: how often each kind was."""

    def __init__(self, servers: Servers, redis: Node, crowd: Crowd) -> None:
        self._servers, self._redis, self._crowd = servers, redis, crowd
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.counts: Counter[str] = Counter()
        self.active: list[Fault] = []

    async def run(self, faults: Iterable[Fault], written: Callable[[int], Awaitable[None]]) -> None:
        """Inject each when so many notifications are `written`; returns when all is undone."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await written(fault.at)
                group.create_task(self._inject(fault), name=str(fault))

    async def _inject(self, fault: Fault) -> None:
        part = fault.kind.partition("-")[0].replace("deploy", "worker")
        async with self._turns[part]:
            self.active.append(fault)
            await getattr(self, "_" + fault.kind.replace("-", "_"))(fault)
            self.active.remove(fault)
            self.counts[fault.kind] += 1

    async def _worker_kill(self, fault: Fault) -> None:
        await self._servers.kill(fault.target)
        await asyncio.sleep(fault.for_s)
        await self._servers.start_one(fault.target)

    async def _worker_freeze(self, fault: Fault) -> None:
        self._servers.signal(fault.target, signal.SIGSTOP)
        await asyncio.sleep(fault.for_s)
        self._servers.signal(fault.target, signal.SIGCONT)

    async def _deploy(self, fault: Fault) -> None:
        for number in range(self._servers.size):
            await self._servers.drain(number)
            await self._servers.start_one(number)

    async def _redis_restart(self, fault: Fault) -> None:
        await self._redis.kill()
        await asyncio.sleep(fault.for_s)
        await self._redis.start()

    async def _redis_lose_data(self, fault: Fault) -> None:
        with suppress(RedisError, OSError):  # there is no answer to it
            await self._redis.ask("SHUTDOWN", "NOSAVE")
        await self._redis.kill(lose_data=True)
        await asyncio.sleep(fault.for_s)
        await self._redis.start()

    _redis_away = _redis_lose_data

    async def _client_cut(self, fault: Fault) -> None:
        await self._crowd.order(cut=fault.target)
