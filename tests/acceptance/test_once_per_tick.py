"""Eight real processes with skewed clocks and a 5 ms job: 500 ticks, 500 runs."""

from __future__ import annotations

import asyncio

import pytest

from conftest import RedisServer
from workers import Worker, effects, prepare, until, wall_ms

WORKERS = 8
TICKS = 500
START = 1_800_000_000_000
RATE = 10.0


@pytest.mark.timeout(240)
async def test_500_ticks_on_8_skewed_workers_run_500_times(
    own_redis: RedisServer, postgres_url: str
) -> None:
    database = await prepare(postgres_url)
    anchor = wall_ms() + 4000  # the first tick comes when all are up
    workers = await asyncio.gather(
        *(
            Worker.start(
                redis=own_redis.url, database=postgres_url, name=f"w{n}", rate=RATE,
                anchor_ms=anchor, start_ms=START, skew_ms=n * 2000 / (WORKERS - 1), sweep_s=2.0,
            )
            for n in range(WORKERS)
        )
    )  # fmt: skip
    try:

        async def enough() -> bool:
            rows = await effects(database)
            return bool(rows) and rows[-1][0] >= rows[0][0] + (TICKS + 5) * 1000

        await until(enough, 150)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = [tick for tick, _ in await effects(database)]
    await database.close()
    first = ticks[0]
    wanted = [first + 1000 * n for n in range(TICKS)]
    assert [tick for tick in ticks if tick < first + 1000 * TICKS] == wanted
    starts = [e for w in workers for e in w.events if e["event"] == "start"]
    assert {event["attempt"] for event in starts} == {1}
    assert not any(event["fallback"] for event in starts)
