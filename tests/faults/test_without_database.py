"""Real workers with DATABASE_URL=none: Redis alone decides, and keeps what is known of runs."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import RedisServer
from ledgers import NONE
from workers import Worker, until, wall_ms

START = 1_800_000_000_000
RATE = 2.5
LEASE_S = 1.5
SWEEP_S = 0.3
TICKS = 60


async def start(redis: RedisServer, **job: Any) -> list[Worker]:
    """Three workers of a job of each second, of which some pass in one."""
    clock = {"anchor_ms": wall_ms() + 3000, "start_ms": START, "rate": RATE}
    return list(await asyncio.gather(*(
        Worker.start(
            redis=redis.url, database=NONE, clock=clock, lease=LEASE_S, sweep=SWEEP_S,
            redis_deadline=0.5, job={"name": f"w{number}", **job},
        )
        for number in range(3)
    )))  # fmt: skip


def happened(workers: Sequence[Worker], what: str) -> list[dict[str, Any]]:
    return [event for worker in workers for event in worker.events if event["event"] == what]


def done(workers: Sequence[Worker]) -> Counter[int]:
    return Counter(event["tick"] for event in happened(workers, "done"))


async def reached(workers: Sequence[Worker], tick: int) -> None:
    async def is_reached() -> bool:
        return max(done(workers), default=0) >= tick

    await until(is_reached, 90)


async def begun(workers: Sequence[Worker], after: int) -> tuple[Worker, int]:
    """The worker that begins a tick after that one, and the tick, at once."""

    async def of(worker: Worker) -> tuple[Worker, int]:
        event = await worker.saw(lambda event: event["event"] == "start" and event["tick"] > after)
        return worker, event["tick"]

    waiting = [asyncio.create_task(of(worker)) for worker in workers]
    first, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in others:
        each.cancel()
    return await first.pop()


async def stop(workers: Sequence[Worker]) -> None:
    await asyncio.gather(*(worker.stop() for worker in workers))


@pytest.fixture
async def lasting_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis that has each write on disk before it answers."""
    redis = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    yield redis
    redis.stop()


async def test_60_ticks_on_3_workers_are_done_once_though_one_is_killed_and_one_frozen(
    own_redis: RedisServer,
) -> None:
    workers = await start(own_redis, body_ms=250)
    try:
        killed, lost = await begun(workers, START + 10_000)
        killed.signal(signal.SIGKILL)
        others = [each for each in workers if each is not killed]
        await reached(others, lost)
        frozen, held = await begun(others, lost + 5_000)
        frozen.signal(signal.SIGSTOP)
        survivor = next(each for each in others if each is not frozen)
        await reached([survivor], held)
        frozen.signal(signal.SIGCONT)
        await reached(others, START + (TICKS + 10) * 1000)
    finally:
        await stop(workers)
    counts = done(workers)
    first = min(counts)
    assert [counts[first + 1000 * n] for n in range(TICKS)] == [1] * TICKS
    again = {event["tick"]: event["attempt"] for event in happened(workers, "done")}
    assert (again[lost], again[held]) == (2, 2)
    assert not any(event["fallback"] for event in happened(workers, "start"))


async def test_a_job_that_kills_its_workers_is_given_up_by_the_last_attempt(
    own_redis: RedisServer,
) -> None:
    workers = await start(own_redis, body_ms=600_000, attempts=2, schedule="* * * * *")
    try:
        first, tick = await begun(workers, 0)
        first.signal(signal.SIGKILL)
        second, again = await begun([each for each in workers if each is not first], 0)
        assert again == tick
        second.signal(signal.SIGKILL)
        (third,) = (each for each in workers if each not in (first, second))
        settled = "{cron:tick-test}:settled"

        async def given_up() -> bool:
            return own_redis.cli("GET", settled) == str(tick)

        await until(given_up, 30)
        assert '"state":"failed"' in own_redis.cli("HGET", "{cron:tick-test}:runs", str(tick))
        assert not [e for e in third.events if e["event"] == "start" and e["tick"] == tick]
    finally:
        await stop(workers)


async def test_ticks_are_done_once_through_a_restart_of_redis_by_jobs_that_wait_for_it(
    lasting_redis: RedisServer,
) -> None:
    workers = await start(lasting_redis, body_ms=20, on_redis_down="skip")
    try:
        await reached(workers, START + 10_000)
        lasting_redis.stop()
        await asyncio.sleep(0.8)  # three ticks
        lasting_redis.start()
        await reached(workers, START + 30_000)
    finally:
        await stop(workers)
    counts = done(workers)
    ticks = range(min(counts), START + 30_000, 1000)
    assert [counts[tick] for tick in ticks] == [1] * len(ticks)


async def test_while_redis_is_away_each_worker_does_each_tick_and_none_again_when_it_is_back(
    lasting_redis: RedisServer,
) -> None:
    workers = await start(lasting_redis, body_ms=20)
    try:
        await reached(workers, START + 5_000)
        lasting_redis.stop()
        await asyncio.sleep(3.0)
        lasting_redis.start()
        back = START + int(max(done(workers)) - START) + 5_000
        await reached(workers, back + 15_000)
    finally:
        await stop(workers)
    alone = Counter(event["tick"] for event in happened(workers, "start") if event["fallback"])
    assert sorted(alone.values())[-1] == 3 and len([n for n in alone.values() if n == 3]) >= 5
    for worker in workers:
        assert max(done([worker]).values()) == 1
    counts = done(workers)
    ticks = range(min(counts), back + 15_000, 1000)
    assert all(counts[tick] >= 1 for tick in ticks)
    assert all(counts[tick] == 1 for tick in ticks if tick > back)
