"""A link to the database says nothing any more, and nobody is told: the job goes on elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from conftest import RedisServer
from proxy import Proxy
from workers import Worker, effects, prepare

LEASE_S = 1.0
# Two leases of silence, the cut, the end of the lock's lease, a sweep; and a busy machine.
TAKEN_OVER_WITHIN_S = 15.0


@pytest.mark.parametrize("directions", [("requests", "replies"), ("replies",)])
async def test_a_link_that_hangs_at_the_owner_stops_the_job_nowhere(
    redis_server: RedisServer, postgres_url: str, directions: tuple[str, ...]
) -> None:
    database = await prepare(postgres_url)
    async with Proxy.to_postgres(postgres_url) as hanging:
        owner, other = [
            await Worker.start(
                redis=redis_server.url, database=url, lease=LEASE_S, sweep=0.3,
                job={"name": name, "body_ms": 300},
            )
            for name, url in (
                ("owner", hanging.postgres_url(postgres_url)), ("other", postgres_url),
            )
        ]  # fmt: skip
        try:
            begun = await owner.saw(lambda event: event["event"] == "start")
            hanging.swallow(*directions)
            hung = begun["tick"]
            # Where the body's commit was on its way it may be there: then a later tick shows it.
            await other.saw(
                lambda event: event["event"] == "start" and event["tick"] > hung + 2000,
                TAKEN_OVER_WITHIN_S,
            )
            before = len(owner.events)
            await hanging.mend()
            async with asyncio.timeout(20):  # it finds its way back
                while not any(each["event"] == "start" for each in owner.events[before:]):
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.gather(owner.stop(), other.stop())
    ticks = [tick for tick, _ in await effects(database)]
    assert ticks == sorted(set(ticks)) and hung in ticks
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    await database.close()
