"""Triggers stay true to a wall clock that is stepped, and never fire early."""

from __future__ import annotations

import asyncio

from solocron.clock import SystemClock
from solocron.cron.ticks import Calendar
from solocron.cron.triggers import Trigger


class SteppedClock(SystemClock):
    """The machine's clock, set ahead by `step_ms`."""

    step_ms = 0.0

    def now_ms(self) -> float:
        return super().now_ms() + self.step_ms


async def test_ticks_after_a_clock_step_are_on_time() -> None:
    clock = SteppedClock()
    fired: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
    calendar = Calendar("* * * * * *")
    trigger = Trigger(calendar, clock, lambda tick: fired.put_nowait((tick, clock.now_ms())))
    trigger.start()
    try:
        await fired.get()
        clock.step_ms = 400.0
        await fired.get()  # armed before the step: may be late once
        for _ in range(2):
            tick, now = await fired.get()
            assert 0 <= now - tick < 200
    finally:
        trigger.stop()
    assert fired.empty()
