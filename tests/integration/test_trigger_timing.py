"""Triggers on the loop the service runs on, over stalls and clocks that are put right."""

from __future__ import annotations

import asyncio
import itertools
import time

import uvloop

from solocron.clock import ScaledClock, SystemClock
from solocron.cron.ticks import Calendar
from solocron.cron.triggers import Trigger

EVERY_SECOND = Calendar("* * * * * *")
START = 1_800_000_000_000


async def fires(rate: float, count: int) -> list[tuple[int, float]]:
    """(tick, wall time it fired at) of `count` ticks of a clock that runs `rate` times faster."""
    clock = ScaledClock(anchor_ms=time.time() * 1000, start_ms=START, rate=rate)
    fired: list[tuple[int, float]] = []
    enough = asyncio.Event()

    def fire(tick: int) -> None:
        fired.append((tick, clock.now_ms()))
        if len(fired) >= count:
            enough.set()

    trigger = Trigger(EVERY_SECOND, clock, fire)
    trigger.start()
    try:
        async with asyncio.timeout(60):
            await enough.wait()
    finally:
        trigger.stop()
    return fired


def test_under_uvloop_no_tick_fires_early_twice_or_as_the_previous_one() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        fired = runner.run(fires(rate=40, count=160))
    ticks = [tick for tick, _ in fired]
    assert all(now >= tick for tick, now in fired)
    assert all(later > tick for tick, later in itertools.pairwise(ticks))
    # A machine that stalls for longer than a tick (25 ms here) skips to the newest.
    assert ticks[-1] - ticks[0] <= 2 * 159_000


def test_on_the_standard_loop_too() -> None:
    with asyncio.Runner() as runner:
        fired = runner.run(fires(rate=40, count=60))
    assert all(now >= tick for tick, now in fired)
    assert len({tick for tick, _ in fired}) == 60


async def test_a_tick_that_came_while_triggers_were_armed_fires_at_once() -> None:
    clock = SystemClock()
    fired: asyncio.Queue[int] = asyncio.Queue()
    since_ms = clock.now_ms() - 60_000
    trigger = Trigger(Calendar("* * * * *"), clock, fired.put_nowait, since_ms=since_ms)
    trigger.start()
    async with asyncio.timeout(5):
        assert since_ms < await fired.get() <= clock.now_ms()
    trigger.stop()
    assert fired.empty()


async def test_after_a_stalled_loop_only_the_newest_tick_fires() -> None:
    clock = ScaledClock(anchor_ms=time.time() * 1000, start_ms=START, rate=20)
    fired: asyncio.Queue[int] = asyncio.Queue()
    trigger = Trigger(EVERY_SECOND, clock, fired.put_nowait)
    trigger.start()
    try:
        before = await fired.get()
        time.sleep(0.5)  # noqa: ASYNC251  # ten ticks pass
        after = await fired.get()
        assert after - before >= 9000
        assert (await fired.get()) > after
    finally:
        trigger.stop()


class WrongClock(SystemClock):
    """The machine's clock, wrong by `wrong_ms`."""

    wrong_ms = 0.0

    def now_ms(self) -> float:
        return super().now_ms() + self.wrong_ms


async def test_a_clock_put_right_by_a_year_does_not_silence_the_schedule() -> None:
    clock = WrongClock()
    clock.wrong_ms = 366 * 24 * 3_600_000.0
    fired: asyncio.Queue[int] = asyncio.Queue()
    trigger = Trigger(EVERY_SECOND, clock, fired.put_nowait)
    trigger.start()
    try:
        await fired.get()
        clock.wrong_ms = 0.0
        async with asyncio.timeout(5):
            while await fired.get() > time.time() * 1000:
                pass
    finally:
        trigger.stop()


async def test_a_clock_set_back_a_little_fires_no_tick_twice() -> None:
    clock = WrongClock()
    fired: asyncio.Queue[int] = asyncio.Queue()
    trigger = Trigger(EVERY_SECOND, clock, fired.put_nowait)
    trigger.start()
    try:
        first = await fired.get()
        clock.wrong_ms = -300.0
        assert await fired.get() == first + 1000
    finally:
        trigger.stop()


async def test_a_stopped_trigger_fires_no_more_and_can_start_again() -> None:
    clock = ScaledClock(anchor_ms=time.time() * 1000, start_ms=START, rate=50)
    fired: asyncio.Queue[int] = asyncio.Queue()
    trigger = Trigger(EVERY_SECOND, clock, fired.put_nowait)
    trigger.start()
    await fired.get()
    trigger.stop()
    before = fired.qsize()
    await asyncio.sleep(0.1)  # five ticks
    assert fired.qsize() == before
    resumed = int(clock.now_ms())
    trigger.start()
    assert await fired.get() > resumed  # what passed while stopped is the sweep's
    trigger.stop()
