"""The watchdog tells of each stall once, where it was, and leaves no thread behind."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import uvloop

from solocron.watchdog import Watchdog


def a_slow_call(seconds: float) -> None:
    time.sleep(seconds)


async def stalls(*seconds: float) -> Watchdog:
    """A watchdog that saw these stalls, and then the calm."""
    watchdog = Watchdog(beat_s=0.02, slow_s=0.15, stalled_s=0.3, calm_s=0.3)
    watching = asyncio.create_task(watchdog.run())
    for each in seconds:
        await asyncio.sleep(0.1)
        a_slow_call(each)
    await asyncio.sleep(0.6)
    watching.cancel()
    await asyncio.wait([watching])
    assert not [each for each in threading.enumerate() if each.name == "watchdog"]
    return watchdog


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_stall_is_told_once_with_its_place(
    caplog: pytest.LogCaptureFixture, loop: object
) -> None:
    caplog.set_level("INFO")
    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]  # a factory
        watchdog = runner.run(stalls(0.8, 0.8))
    said = [record.getMessage() for record in caplog.records]
    blocked = [record for record in caplog.records if "has not run for" in record.getMessage()]
    assert len(blocked) == 2
    for record in blocked:
        assert "a_slow_call" in record.getMessage() and "time.sleep(seconds)" in record.getMessage()
        assert "asyncio.to_thread" in record.getMessage() and "\n" not in record.getMessage()
        assert " < stalls " in record.__dict__["stack"]
    # The two stalls are one bad time, which ends with the calm.
    assert len([text for text in said if "was late by" in text]) == 1
    assert said[-1] == "The event loop is on time again"
    assert 0.6 < watchdog.worst_s < 5 and watchdog.lag_s < 0.5


async def test_a_loop_that_is_hardly_late_is_not_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    watchdog = Watchdog(slow_s=5, stalled_s=5)
    watching = asyncio.create_task(watchdog.run())
    await asyncio.sleep(0.6)
    watching.cancel()
    await asyncio.wait([watching])
    assert caplog.records == []
