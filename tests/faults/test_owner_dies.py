"""The owner of a tick is killed or frozen in mid-run; a survivor takes the tick over."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from conftest import RedisServer
from workers import Worker, effects, prepare, until, wall_ms

LEASE_S = 1.5
SWEEP_S = 0.5


async def start(redis: RedisServer, database: str, name: str, body_ms: int) -> Worker:
    return await Worker.start(
        redis=redis.url, database=database, lease=LEASE_S, sweep=SWEEP_S,
        job={"name": name, "body_ms": body_ms, "schedule": "*/5 * * * * *", "overlap": "skip"},
    )  # fmt: skip


def started(event: dict[str, Any]) -> bool:
    return event["event"] == "start"


async def test_a_killed_owners_tick_is_taken_over_within_lease_and_sweep(
    own_redis: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)
    owner = await start(own_redis, database_url, "owner", 600_000)
    tick = (await owner.saw(started))["tick"]
    survivor = await start(own_redis, database_url, "survivor", 5)
    owner.signal(signal.SIGKILL)
    began = wall_ms()
    try:
        again = await survivor.saw(lambda event: event.get("tick") == tick)
        assert again["attempt"] == 2
        assert wall_ms() - began < 1000 * (LEASE_S + 1.2 * SWEEP_S) + 1000

        async def written() -> bool:
            return bool(await effects(database))

        await until(written)
    finally:
        await asyncio.gather(owner.stop(), survivor.stop())
    assert [row for row in await effects(database) if row[0] == tick] == [(tick, "survivor")]
    await database.close()


async def test_a_frozen_owner_that_wakes_writes_nothing(
    own_redis: RedisServer, postgres_url: str
) -> None:
    database = await prepare(postgres_url)
    owner = await start(own_redis, postgres_url, "owner", 300)
    tick = (await owner.saw(started))["tick"]
    owner.signal(signal.SIGSTOP)
    survivor = await start(own_redis, postgres_url, "survivor", 5)
    try:
        await survivor.saw(lambda event: event.get("tick") == tick)
        owner.signal(signal.SIGCONT)
        # The woken owner goes on to a later tick: by then it has dealt with the lost one.
        await survivor.stop()
        await owner.saw(lambda event: event["event"] == "start" and event["tick"] > tick)
    finally:
        await asyncio.gather(owner.stop(), survivor.stop())
    assert [row for row in await effects(database) if row[0] == tick] == [(tick, "survivor")]
    await database.close()
