"""The event loop is blocked, the processes are frozen, the wall clock is stepped, the disk slow."""

from __future__ import annotations

import asyncio
import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from conftest import RedisServer
from solocron.storage.engine import Database
from workers import Worker, effects, prepare, table_locked, until, wall_ms

LEASE_S = 2.0
SWEEP_S = 0.5
BLOCK_S = 8.0
HOUR_MS = 3_600_000
SETTLED = "{cron:tick-test}:settled"


async def start(
    redis: RedisServer, database: str, name: str, clock: dict[str, float] | None = None,
    log: Path | None = None, catch_up: float = 3600, **job: Any,
) -> Worker:  # fmt: skip
    return await Worker.start(
        redis=redis.url, database=database, lease=LEASE_S, sweep=SWEEP_S, catch_up=catch_up,
        clock=clock, log=log, job={"name": name, **job},
    )  # fmt: skip


async def ticks_of(database: Database) -> list[int]:
    return [tick for tick, _ in await effects(database)]


async def ran_after(database: Database, ms: float, count: int) -> None:
    """Wait until `count` ticks later than `ms` have run."""

    async def enough() -> bool:
        return len([tick for tick in await ticks_of(database) if tick > ms]) >= count

    await until(enough)


def said(log: Path, text: str) -> int:
    return log.read_text().count(text)


# -- blocked -----------------------------------------------------------------------------------


async def test_a_blocked_owner_is_taken_over_and_its_late_write_refused(
    redis_server: RedisServer, database_url: str, tmp_path: Path
) -> None:
    database, log = await prepare(database_url), tmp_path / "owner.log"
    owner = await start(redis_server, database_url, "owner", log=log, block_s=BLOCK_S)
    tick = (await owner.saw(lambda event: event["event"] == "start"))["tick"]
    began = wall_ms()
    survivor = await start(redis_server, database_url, "survivor")
    try:
        again = await survivor.saw(lambda event: event.get("tick") == tick)
        assert again["attempt"] == 2
        assert wall_ms() - began < BLOCK_S * 1000, "not before the owner was back"
        assert (await owner.saw(lambda event: event["event"] == "awake"))["leased"] is False
        late = await owner.saw(lambda event: event["event"] == "late")
        assert late["refused"] == "StaleAttempt"
        await ran_after(database, tick + 1000 * BLOCK_S, 3)
    finally:
        await asyncio.gather(owner.stop(), survivor.stop())
    ticks = await ticks_of(database)
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    assert (tick, "survivor") in await effects(database)
    await database.close()
    assert said(log, "The event loop has not run for") == 1
    assert said(log, "it is in block_the_loop (") == 1  # which code it was
    assert said(log, "The event loop was late by") == 1


@pytest.mark.parametrize("overlap", ["queue", "skip"])
async def test_after_a_stall_missed_ticks_follow_the_jobs_policy(
    redis_server: RedisServer, sqlite_url: str, overlap: str
) -> None:
    database = await prepare(sqlite_url)
    worker = await start(redis_server, sqlite_url, "w", block_s=BLOCK_S, overlap=overlap)
    tick = (await worker.saw(lambda event: event["event"] == "start"))["tick"]
    try:
        await ran_after(database, tick + 1000 * BLOCK_S, 3)
        state = await readiness(worker)
    finally:
        await worker.stop()
    ticks = await ticks_of(database)
    await database.close()
    assert len(set(ticks)) == len(ticks) and ticks[0] == tick
    assert state["loop_lag_max_ms"] > 1000 * (BLOCK_S - 1) > 1000 > state["loop_lag_ms"]
    if overlap == "queue":
        assert ticks == list(range(tick, ticks[-1] + 1, 1000))
    else:  # the newest only: what came due meanwhile is skipped
        assert ticks[1] - tick >= 1000 * (BLOCK_S - 1)


async def readiness(worker: Worker) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{worker.port}/readyz", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    return await asyncio.to_thread(read)


# -- frozen ------------------------------------------------------------------------------------


async def test_all_are_frozen_past_lease_and_ttl_and_go_on(
    redis_server: RedisServer, database_url: str, tmp_path: Path
) -> None:
    database, log = await prepare(database_url), tmp_path / "log"
    workers = [
        await start(redis_server, database_url, f"w{n}", log=log, ttl_ms=3000) for n in range(2)
    ]
    try:
        await ran_after(database, 0, 2)
        for worker in workers:
            worker.signal(signal.SIGSTOP)
        frozen_at = (await ticks_of(database))[-1]

        async def forgotten() -> bool:
            return wall_ms() > frozen_at + 7000 and redis_server.cli("KEYS", "cron:*") == ""

        await until(forgotten)
        for worker in workers:
            worker.signal(signal.SIGCONT)
        await ran_after(database, wall_ms(), 2)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = await ticks_of(database)
    await database.close()
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    assert said(log, "The event loop has not run for") == 0  # no code is to blame
    assert said(log, "The event loop was late by") == 2


# -- stepped -----------------------------------------------------------------------------------


async def test_one_server_whose_clock_is_an_hour_off_disturbs_no_tick(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    database, log = await prepare(postgres_url), tmp_path / "wrong.log"
    wrong = await start(redis_server, postgres_url, "wrong", log=log)
    others = [await start(redis_server, postgres_url, f"w{n}") for n in range(2)]
    try:
        for step in (HOUR_MS, 0, -HOUR_MS, 0):
            await wrong.step(step)
            await ran_after(database, wall_ms(), 4)
            assert int(redis_server.cli("GET", SETTLED)) <= wall_ms()
    finally:
        await asyncio.gather(*(worker.stop() for worker in (wrong, *others)))
    ticks = await ticks_of(database)
    await database.close()
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    for text in ("3600 s ahead of Redis's", "3600 s behind Redis's"):
        assert said(log, text) == 1
    assert said(log, "RESOLVED: this server's clock") == 2


async def test_all_clocks_are_set_an_hour_off_and_right_again(
    redis_server: RedisServer, postgres_url: str
) -> None:
    database = await prepare(postgres_url)
    workers = [await start(redis_server, postgres_url, f"w{n}") for n in range(2)]
    try:
        for step in (HOUR_MS, -HOUR_MS):
            await ran_after(database, wall_ms(), 2)
            await asyncio.gather(*(worker.step(step) for worker in workers))
            await until(lambda: nothing_runs(database))
            await asyncio.gather(*(worker.step(0) for worker in workers))
            await ran_after(database, wall_ms(), 2)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = await ticks_of(database)
    await database.close()
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))


async def nothing_runs(database: Database) -> bool:
    """Whether three ticks passed in which nothing ran."""
    before = await ticks_of(database)
    await asyncio.sleep(3)
    return await ticks_of(database) == before


@pytest.mark.parametrize("overlap", ["queue", "skip"])
async def test_clocks_put_forward_run_the_catch_up_window_and_report_the_rest(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path, overlap: str
) -> None:
    database, log, now = await prepare(postgres_url), tmp_path / "log", wall_ms()
    behind = {"anchor_ms": now, "start_ms": now, "skew_ms": -HOUR_MS}
    workers = [
        await start(
            redis_server, postgres_url, f"w{n}", behind, log=log, catch_up=10, overlap=overlap
        )
        for n in range(2)
    ]
    try:
        await ran_after(database, 0, 3)
        await asyncio.gather(*(worker.step(HOUR_MS) for worker in workers))
        stepped = wall_ms()
        await ran_after(database, stepped, 3)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    ticks = await ticks_of(database)
    await database.close()
    before = [tick for tick in ticks if tick < now - HOUR_MS / 2]
    after = ticks[len(before) :]
    assert before == list(range(before[0], before[-1] + 1, 1000))
    if overlap == "queue":
        assert after == list(range(after[0], after[-1] + 1, 1000))
        assert 8 <= (stepped - after[0]) / 1000 <= 12
        assert said(log, "missed 100 or more ticks: older than the catch-up window") >= 1
    else:  # one may be skipped while a server that was not yet put right runs its own
        assert all(tick < later for tick, later in pairwise(after))
        assert (stepped - after[0]) / 1000 <= 2


# -- a slow disk -------------------------------------------------------------------------------


async def test_a_database_that_writes_slowly_costs_no_lease_and_blocks_no_loop(
    redis_server: RedisServer, database_url: str
) -> None:
    database = await prepare(database_url)
    worker = await start(redis_server, database_url, "w")
    try:
        await ran_after(database, 0, 1)
        async with table_locked(database_url, "effects"):
            locked = wall_ms()

            async def twice_the_lease() -> bool:
                return wall_ms() > locked + 2000 * LEASE_S

            await until(twice_the_lease)
            assert (await readiness(worker))["loop_lag_max_ms"] < 1000 * LEASE_S
        await ran_after(database, wall_ms(), 2)
    finally:
        await worker.stop()
    ticks = await ticks_of(database)
    await database.close()
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 1000))
    assert {event["attempt"] for event in worker.events if event["event"] == "start"} == {1}
