"""The ways to take and free a lock that are compared. Each is imported where it is used, as each
environment has only its own; each takes the lock for ten seconds, and sees that it got it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

Cycle = Callable[[str], Awaitable[None]]

HOST, TTL_S = "127.0.0.1", 10


class NotTaken(Exception):
    """A lock that nobody held was not got, or not freed."""


def _sure(done: object) -> None:
    if not done:
        raise NotTaken


@asynccontextmanager
async def solocron(port: int, tasks: int) -> AsyncIterator[Cycle]:
    from solocron import LockManager, SystemClock

    url = f"redis://{HOST}:{port}/0"
    async with LockManager(url, clock=SystemClock(), deadline_s=30) as locks:

        async def cycle(key: str) -> None:
            _sure(await locks.acquire_lock(key, TTL_S * 1000))
            _sure(await locks.release_lock(key))

        yield cycle


@asynccontextmanager
async def redis_py(port: int, tasks: int) -> AsyncIterator[Cycle]:
    from redis.asyncio import Redis

    async with Redis(host=HOST, port=port, max_connections=max(100, tasks)) as client:

        async def cycle(key: str) -> None:
            lock = client.lock(key, timeout=TTL_S, blocking=False)
            _sure(await lock.acquire())
            await lock.release()  # raises when it was not ours

        yield cycle


@asynccontextmanager
async def pottery(port: int, tasks: int) -> AsyncIterator[Cycle]:
    from pottery import AIORedlock
    from redis.asyncio import Redis

    async with Redis(host=HOST, port=port, max_connections=max(100, tasks)) as client:

        async def cycle(key: str) -> None:
            lock = AIORedlock(key=key, masters={client}, auto_release_time=TTL_S)
            _sure(await lock.acquire(blocking=False))
            await lock.release()

        yield cycle


@asynccontextmanager
async def aioredlock(port: int, tasks: int) -> AsyncIterator[Cycle]:
    from aioredlock import Aioredlock

    logging.getLogger("aioredlock").setLevel(logging.ERROR)
    manager = Aioredlock([{"host": HOST, "port": port}])
    try:

        async def cycle(key: str) -> None:
            await manager.unlock(await manager.lock(key, lock_timeout=TTL_S))

        yield cycle
    finally:
        await manager.destroy()


@asynccontextmanager
async def coredis(port: int, tasks: int) -> AsyncIterator[Cycle]:
    from coredis import Redis
    from coredis.patterns.lock import Lock

    async with Redis(host=HOST, port=port) as client:

        async def cycle(key: str) -> None:
            lock = Lock(client, key, timeout=TTL_S, blocking=False)
            _sure(await lock.acquire())
            await lock.release()

        yield cycle


Way = Callable[[int, int], AbstractAsyncContextManager[Cycle]]

WAYS: dict[str, Way] = {
    "solocron": solocron, "redis-py": redis_py, "pottery": pottery, "aioredlock": aioredlock,
    "coredis": coredis,
}  # fmt: skip


async def cycles(cycle: Cycle, tasks: int, seconds: float) -> int:
    """How often so many tasks together took and freed a lock, each one of its own."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def repeat(key: str) -> int:
        done = 0
        while loop.time() < end:
            await cycle(key)
            done += 1
        return done

    return sum(await asyncio.gather(*(repeat(f"cron:bench-{n}") for n in range(tasks))))
