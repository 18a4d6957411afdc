"""What workers tell each other of ticks and of themselves, in a real Redis."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import RedisServer
from solocron.clock import ScaledClock, SystemClock
from solocron.cron.board import DAY_MS, Board, State, tick_key
from solocron.cron.job import Job
from solocron.cron.journal import Entry, Journal
from solocron.cron.outcome import SUCCEEDED
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import LockUnavailable
from solocron.locks.cluster import make_link
from workers import Worker, prepare, until, wall_ms

TICK = 1_800_000_000_000
WORKERS = "solocron:workers"


async def _body(run: Run) -> None: ...


def job(expression: str = "* * * * *", name: str = "one") -> Job:
    return Job(name=name, calendar=Calendar(expression), body=_body)


class Told:
    """A board, and the journal whose entries it tells."""

    def __init__(self, url: str, *jobs: Job, clock: SystemClock | ScaledClock | None = None):
        self.journal, self.clock = Journal(), clock or SystemClock()
        link = make_link(url, clock=self.clock, deadline_s=0.5)
        self.board = Board(
            link, self.journal, clock=self.clock, environment="", sweep_s=0.05,
            locks_up=lambda: True,
        )  # fmt: skip
        self._jobs = {each.name: each for each in jobs or (job(),)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Told]:
        task = asyncio.create_task(self.board.run(self._jobs, lambda: State(skew_ms=-7)))
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.board.close()

    def note(self, tick: int, verdict: str, **more: Any) -> None:
        self.journal.note(Entry("one", tick, verdict, **more))

    async def verdicts(self, tick: int) -> dict[str, str]:
        found = await self.board.verdicts(self._jobs["one"], tick)
        return {worker: entry.verdict for worker, entry in found.items()}


async def true(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_each_worker_says_what_it_did_with_a_tick(redis_server: RedisServer) -> None:
    async with Told(redis_server.url).running() as one, Told(redis_server.url).running() as two:
        one.note(TICK, "ran", attempt=1, duration_ms=80, late_ms=3, at_ms=TICK + 83)
        two.note(TICK, "held", detail="who: ünïcode", at_ms=TICK + 4)
        await true(lambda: not one.board.waiting and not two.board.waiting)
        wanted = {
            one.board.worker: Entry("one", TICK, "ran", "", 1, 3, 80, TICK + 83),
            two.board.worker: Entry("one", TICK, "held", "who: ünïcode", at_ms=TICK + 4),
        }
        assert await two.board.verdicts(job(), TICK) == wanted
        assert await two.board.verdicts(job(), TICK + 60_000) == {}
        one.note(TICK, "duplicate-prevented")  # which does not hide that it ran
        two.note(TICK, "recovered", attempt=2)
        await true(lambda: not one.board.waiting and not two.board.waiting)
        assert await one.verdicts(TICK) == {
            one.board.worker: "ran", two.board.worker: "recovered",
        }  # fmt: skip


async def test_what_comes_while_another_entry_is_under_way_is_told_next(
    redis_server: RedisServer,
) -> None:
    async with Told(redis_server.url).running() as one:
        await until(lambda: _count(one, 1))
        one.note(TICK, "held")
        redis_server.pause()
        telling = asyncio.create_task(one.board.publish())
        await asyncio.sleep(0)  # it has taken the entry
        one.note(TICK, "recovered")
        redis_server.resume()
        await telling
        await true(lambda: not one.board.waiting)
        assert await one.verdicts(TICK) == {one.board.worker: "recovered"}


@pytest.mark.parametrize(
    ("expression", "keep_ms"), [("* * * * * *", 500_000), ("0 0 * * *", DAY_MS)]
)
async def test_no_key_is_without_a_time_to_live(
    redis_server: RedisServer, expression: str, keep_ms: int
) -> None:
    each = job(expression)
    async with Told(redis_server.url, each).running() as one:
        one.note(TICK, "ran")
        await true(lambda: not one.board.waiting)
        left = {key: int(redis_server.cli("PTTL", key)) for key in redis_server.cli(
            "KEYS", "*").split()}  # fmt: skip
    assert left.keys() == {tick_key(each, TICK), WORKERS}
    assert keep_ms - 20_000 < left[tick_key(each, TICK)] <= keep_ms
    assert 0 < left[WORKERS] <= DAY_MS


async def test_a_worker_says_how_it_is_until_it_leaves(redis_server: RedisServer) -> None:
    async with Told(redis_server.url).running() as one, Told(redis_server.url).running() as two:
        await until(lambda: _count(one, 2))
        mine, *_ = [w for w in await two.board.workers() if w.worker == one.board.worker]
        assert mine.skew_ms == -7 and mine.schedules == {"one": "* * * * * UTC"}
        assert mine.worker.startswith(f"{mine.host}:{mine.pid}:")
        assert abs(mine.seen_ms - wall_ms()) < 60_000 and mine.started_ms <= mine.seen_ms
        one.note(TICK, "ran")
        await one.board.leave()
        assert await two.verdicts(TICK) == {one.board.worker: "ran"}
        await asyncio.sleep(0.2)  # several sweeps of its own
        assert [w.worker for w in await two.board.workers()] == [two.board.worker]


async def _count(told: Told, wanted: int) -> bool:
    return len(await told.board.workers()) == wanted


async def test_a_worker_not_seen_for_a_day_is_taken_out(redis_server: RedisServer) -> None:
    async with Told(redis_server.url).running() as one:
        await until(lambda: _count(one, 1))
    redis_server.cli("HSET", WORKERS, "junk:1", "no json")
    tomorrow = ScaledClock(anchor_ms=wall_ms(), start_ms=wall_ms() + DAY_MS + 60_000)
    async with Told(redis_server.url, clock=tomorrow).running() as two:
        await until(lambda: _count(two, 1))
        await true(lambda: redis_server.cli("HKEYS", WORKERS) == two.board.worker)


async def test_what_nobody_of_ours_wrote_is_ignored(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"verdict": "ran", "detail": "", "attempt": 1, "late_ms": 0, "duration_ms": 1,
            "at_ms": 2}  # fmt: skip
    bad = ["", "{", "[]", "null", "[" * 50_000, json.dumps({**good, "verdict": "danced"}),
           json.dumps({**good, "attempt": True}), json.dumps({**good, "at_ms": 1e400}),
           json.dumps({**good, "detail": ["x"]}), json.dumps({**good, "late_ms": 10**30}),
           '{"verdict": "ran"}', "x" * 100_000]  # fmt: skip
    key = tick_key(job(), TICK)
    for number, text in enumerate(bad):
        redis_server.cli("HSET", key, f"bad{number}", text)
    redis_server.cli("HSET", key, "newer", json.dumps({**good, "more": [1]}))
    one = Told(redis_server.url)
    assert await one.verdicts(TICK) == {"newer": "ran"}
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("ignored what")]
    assert len(lines) == len(bad) - 1  # the longest did not come at all
    assert max(map(len, lines)) < 200
    redis_server.cli("HSET", WORKERS, "bad", json.dumps({"host": "h", "schedules": 1}))
    assert await one.board.workers() == []
    await one.board.close()


async def test_replies_are_bounded(redis_server: RedisServer) -> None:
    script = """for i = 1, 5000 do
      redis.call('HSET', KEYS[1], 'w' .. i, '{"verdict":"ran","detail":"","attempt":1,' ..
        '"late_ms":0,"duration_ms":0,"at_ms":0,"x":"' .. string.rep('x', tonumber(ARGV[1])) .. '"}')
    end"""
    one, key = Told(redis_server.url), tick_key(job(), TICK)
    redis_server.cli("EVAL", script, "1", key, "10")
    assert len(await one.verdicts(TICK)) == 1000
    redis_server.cli("EVAL", script, "1", key, "60000")
    assert 50 < len(await one.verdicts(TICK)) < 75  # 4 MiB
    await one.board.close()


async def test_a_key_of_another_type_harms_nobody(redis_server: RedisServer) -> None:
    redis_server.cli("SET", tick_key(job(), TICK), "1")
    async with Told(redis_server.url).running() as one:
        one.note(TICK, "ran")
        one.note(TICK + 60_000, "ran")
        await true(lambda: not one.board.waiting)
        assert await one.verdicts(TICK + 60_000) == {one.board.worker: "ran"}
        with pytest.raises(LockUnavailable, match="WRONGTYPE"):
            await one.verdicts(TICK)


async def test_entries_wait_for_redis_and_the_oldest_of_too_many_are_left_out(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    own_redis.stop()
    async with Told(own_redis.url).running() as one:
        for number in range(6000):
            one.note(TICK + number * 60_000, "ran")
        assert one.board.waiting == 5000
        with pytest.raises(LockUnavailable):
            await one.verdicts(TICK)
        await true(lambda: caplog.records)
        own_redis.start()
        await true(lambda: not one.board.waiting)
        assert await one.verdicts(TICK + 999 * 60_000) == {}
        assert await one.verdicts(TICK + 1000 * 60_000) == {one.board.worker: "ran"}
        assert await one.verdicts(TICK + 5999 * 60_000) == {one.board.worker: "ran"}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("What becomes of ticks is not told")


async def test_without_redis_a_worker_leaves_at_once(own_redis: RedisServer) -> None:
    async with Told(own_redis.url).running() as one:
        await until(lambda: _count(one, 1))
        own_redis.stop()
        one.note(TICK, "ran")
        await true(lambda: not one.board._link.is_up)
        async with asyncio.timeout(0.2):
            await one.board.leave()


# -- real workers ------------------------------------------------------------------------------

EVERY_OTHER_SECOND = Calendar("*/2 * * * * *")
REAL = Job(name="tick-test", calendar=EVERY_OTHER_SECOND, body=_body)


class Fleet:
    """Two workers, and a board to read what they tell."""

    def __init__(self, redis: RedisServer, workers: list[Worker]) -> None:
        self.board = Told(redis.url).board
        self.workers = workers

    async def verdicts(self, tick: int) -> dict[int, Entry]:
        """By process."""
        found = await self.board.verdicts(REAL, tick)
        return {int(worker.split(":")[1]): entry for worker, entry in found.items()}

    async def all_told(self, tick: int) -> dict[int, Entry]:
        async def told() -> bool:
            return len(await self.verdicts(tick)) == len(self.workers)

        await until(told, 30)
        return await self.verdicts(tick)


@pytest.fixture
async def fleet(own_redis: RedisServer, postgres_url: str) -> AsyncIterator[Fleet]:
    database = await prepare(postgres_url)
    options = {"schedule": EVERY_OTHER_SECOND.expression, "overlap": "skip"}
    workers = await asyncio.gather(
        *(
            Worker.start(
                redis=own_redis.url, database=postgres_url, sweep=0.5,
                job={**options, "name": f"w{number}"},
            )
            for number in range(2)
        )
    )  # fmt: skip
    fleet = Fleet(own_redis, list(workers))
    yield fleet
    await asyncio.gather(*(worker.stop() for worker in workers))
    await fleet.board.close()
    await database.close()


def next_tick() -> int:
    return EVERY_OTHER_SECOND.next_after(wall_ms() + 500)


async def test_of_two_workers_the_board_says_who_ran_a_tick_and_why_the_other_did_not(
    fleet: Fleet,
) -> None:
    tick = next_tick()
    told = await fleet.all_told(tick)
    assert told.keys() == {each.process.pid for each in fleet.workers}
    ran = [pid for pid, entry in told.items() if entry.verdict in SUCCEEDED]
    assert len(ran) == 1
    (other,) = told.keys() - set(ran)
    assert told[other].verdict in ("held", "done")
    (start,) = [
        each.process.pid for each in fleet.workers for event in each.events
        if event["event"] == "start" and event["tick"] == tick
    ]  # fmt: skip
    assert start == ran[0]


async def test_what_was_done_without_redis_is_told_when_it_is_back(
    fleet: Fleet, own_redis: RedisServer
) -> None:
    await fleet.all_told(next_tick())
    own_redis.stop()
    tick = next_tick()
    both = [each.saw(lambda event: event.get("tick", 0) >= tick + 2000) for each in fleet.workers]
    await asyncio.wait(list(map(asyncio.ensure_future, both)), return_when="FIRST_COMPLETED")
    own_redis.start()
    told = (await fleet.all_told(tick)).values()
    assert [each.verdict for each in told if each.begun] in (["fallback"], ["recovered"])
    assert [each.verdict for each in told if not each.begun] == ["duplicate-prevented"]


async def test_the_presence_of_a_dead_worker_ages(fleet: Fleet) -> None:
    await until(lambda: _seen(fleet, 2))
    dead, alive = fleet.workers
    dead.signal(signal.SIGKILL)
    await dead.process.wait()
    killed_ms = wall_ms()

    async def aged() -> bool:
        found = {each.pid: each for each in await fleet.board.workers()}
        return found[alive.process.pid].seen_ms > killed_ms + 1000

    await until(aged)
    found = {each.pid: each for each in await fleet.board.workers()}
    assert found[dead.process.pid].seen_ms <= killed_ms
    assert found[alive.process.pid].redis == found[alive.process.pid].database == "up"
    assert found[alive.process.pid].schedules["tick-test"] == REAL.fingerprint
    await alive.stop()
    assert [each.pid for each in await fleet.board.workers()] == [dead.process.pid]


async def _seen(fleet: Fleet, count: int) -> bool:
    return len(await fleet.board.workers()) == count
