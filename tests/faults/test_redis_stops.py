"""Redis is stopped for several ticks: the ledger arbitrates, and locks return with Redis."""

from __future__ import annotations

import asyncio

from conftest import RedisServer
from workers import effects, prepare, start_fleet, until


async def test_ticks_run_once_while_redis_is_down_and_locks_return(
    own_redis: RedisServer, postgres_url: str
) -> None:
    database = await prepare(postgres_url)
    workers = await start_fleet(
        3, redis=own_redis.url, database=postgres_url, sweep=0.5, redis_deadline=0.3
    )

    def starts(fallback: bool) -> list[int]:
        events = [e for w in workers for e in w.events if e["event"] == "start"]
        return sorted(e["tick"] for e in events if e["fallback"] is fallback)

    async def ran(fallback: bool, count: int, after: int = 0) -> None:
        async def enough() -> bool:
            return len([tick for tick in starts(fallback) if tick > after]) >= count

        await until(enough)

    try:
        await ran(False, 2)
        own_redis.stop()
        await ran(True, 4)
        last_fallback = starts(True)[-1]
        own_redis.start()
        await ran(False, 3, after=last_fallback)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    await database.close()
