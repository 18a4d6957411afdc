"""A machine that was suspended: its clock ran on, the event loop's timers stood still."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from conftest import RedisServer
from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.errors import LeaseLost
from solocron.ledger import RunKey
from solocron.locks.manager import LockManager
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger

HOUR_S = 3600.0


class SuspendedClock(SystemClock):
    """A machine's clocks, after it was suspended for `away_s` in all."""

    away_s = 0.0

    def now_ms(self) -> float:
        return super().now_ms() + self.away_s * 1000

    def monotonic(self) -> float:
        return super().monotonic() + self.away_s

    def real_ms(self, wall_ms: float) -> float:
        return wall_ms - self.away_s * 1000  # Redis was not suspended, and is asked what time it is


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no such clock on this platform")
def test_the_lease_clock_is_the_one_that_counts_suspension() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= SystemClock().monotonic() <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def test_a_lease_is_over_soon_after_the_machine_wakes(own_redis: RedisServer) -> None:
    clock = SuspendedClock()
    async with LockManager(own_redis.url, clock=clock, lease_ms=60_000) as locks:
        with pytest.raises(LeaseLost, match="not renewed in time"):
            async with locks.hold("cron:one", 600_000):
                own_redis.pause()  # nobody says that the lock is still ours
                clock.away_s = HOUR_S
                try:
                    async with asyncio.timeout(5):  # the loop's own timers have 60 s to go
                        await asyncio.Event().wait()
                finally:
                    own_redis.resume()


class Beats(RunLedger):
    """The ledger, counting the heartbeats of each run."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.counts: Counter[RunKey] = Counter()

    async def heartbeat(self, key: RunKey, lease_ms: int) -> bool:
        self.counts[key] += 1
        return await super().heartbeat(key, lease_ms)


async def test_the_heartbeats_of_a_time_away_are_not_made_up_for(
    own_redis: RedisServer, database: Database
) -> None:
    clock, ledger = SuspendedClock(), Beats(database)
    own_redis.stop()  # the ledger's lease is the only one

    async def body(run: Run) -> None:
        clock.away_s = HOUR_S
        await asyncio.Event().wait()

    async with LockManager(own_redis.url, clock=clock, deadline_s=0.1) as locks:
        runner = Runner(locks=locks, ledger=ledger, clock=clock, owner="w", lease_ms=3000)
        job = Job(name="one", calendar=Calendar("* * * * *"), body=body)
        outcome = await runner.run_tick(job, int(clock.now_ms()) // 60_000 * 60_000)
    assert outcome.state == "lost"
    assert sum(ledger.counts.values()) <= 3
