"""Eight real processes with skewed clocks and a 5 ms job: 500 ticks, 500 runs."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest

from conftest import RedisServer
from workers import Worker, effects, prepare, until, wall_ms

SKEWS_MS = (0, 400, 800, 1200, 1600, 2000, 2000, 2000)
TICKS = 500
START = 1_800_000_000_000
RATE = 10.0
FOREVER_S = 3600


def evalsha_calls(redis: RedisServer) -> int:
    """How many scripts the server ran for its clients."""
    stats = redis.cli("info", "commandstats")
    found = re.search(r"cmdstat_evalsha:calls=(\d+)", stats)
    assert found
    return int(found[1])


def statements(log: Path, table: str) -> Counter[int]:
    """Statements on `table` that PostgreSQL logged, by process of the client."""
    found: Counter[int] = Counter()
    for line in log.read_text().splitlines():
        match = re.match(r"solocron (\d+)\|LOG: .*(?:execute|statement).*?: (.*)", line)
        if match and table in match[2]:
            found[int(match[1])] += 1
    return found


@pytest.mark.alone
@pytest.mark.timeout(240)
async def test_500_ticks_on_8_skewed_workers_run_500_times(
    own_redis: RedisServer, postgres_url: str, postgres_log: Path
) -> None:
    """And the losers send one Redis command and no query, as the servers themselves counted."""
    database = await prepare(postgres_url)
    anchor = wall_ms() + 6000  # the first tick comes when all are up
    workers = await asyncio.gather(
        *(
            Worker.start(
                redis=own_redis.url, database=postgres_url, sweep=FOREVER_S,
                clock={"anchor_ms": anchor, "start_ms": START, "rate": RATE, "skew_ms": skew},
                job={"name": f"w{number}"},
            )
            for number, skew in enumerate(SKEWS_MS)
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

    tries = sum(sum(worker.tally.values()) for worker in workers)
    assert tries > 4 * TICKS  # a worker whose loop was stalled for a tick or more tries the newest
    # At most one claim for each try, and one settle for each run; one survey for each worker.
    assert evalsha_calls(own_redis) <= tries + len(ticks) + len(workers)
    queries = statements(postgres_log, "job_runs")
    # Once a minute one server looks for old runs: five queries for one job, two of them such.
    pruning = statements(postgres_log, "min(job_runs.job)")
    runs = {worker.process.pid: worker.tally.get("run", 0) for worker in workers}
    assert sum(runs.values()) == len(ticks)
    # For the first sweep: the newest tick of each job and, on one server per lease, runs left over.
    at_start = 2
    for pid, count in runs.items():
        # A winner's: what a crashed owner left, begin, fence and finish, and now and then the
        # first two for a tick that had just been settled elsewhere. A loser's: none.
        others = at_start + 5 * (pruning[pid] // 2)
        assert queries[pid] - others <= (4 * count + 8 if count else 0)
