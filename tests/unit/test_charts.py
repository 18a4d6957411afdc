"""The dashboard's charts: what stands where, and what it says in words."""

from __future__ import annotations

from typing import Any

import pytest

from solocron.web.charts import HEIGHT, days, span, timeline

HOUR = 3_600_000


def run(state: str = "succeeded", **more: Any) -> dict[str, Any]:
    took = None if state == "running" else 1000
    return {"state": state, "duration_ms": took, "origin": "schedule", "late_ms": 0, **more}


def test_the_newest_run_stands_at_the_right() -> None:
    chart = timeline([run("running"), run("failed"), run()], 5)
    assert [(bar.x, bar.state) for bar in chart.bars] == [
        (18, "succeeded"), (27, "failed"), (36, "running"),
    ]  # fmt: skip
    assert chart.text == "Last runs: 1 succeeded, 1 failed, 1 running"
    assert timeline([], 5).text == "No run yet"
    assert len(timeline([run()] * 9, 5).bars) == 5


def test_a_longer_run_stands_higher_and_none_too_high() -> None:
    times = (0, 10, 1_000, 60_000, 600_000, 10**9)
    heights = [timeline([run(duration_ms=each)], 1).bars[0].height for each in times]
    assert heights == sorted(heights) and heights[0] > 0
    assert len(set(heights[:5])) == 5 and heights[4] == heights[5] == HEIGHT


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (run(), "succeeded in 1.0 s"),
        (run("failed", late_ms=2_500), "failed in 1.0 s, began 2.5 s late"),
        (run("running", origin="manual", late_ms=None), "running, by hand"),
    ],
)
def test_a_bar_says_what_it_is(given: dict[str, Any], says: str) -> None:
    assert timeline([given], 1).bars[0].text == says


def hour(number: int, succeeded: int, failed: int, job: str = "a") -> dict[str, Any]:
    return {"job": job, "since": number * HOUR, "succeeded": succeeded, "failed": failed,
            "running": 0, "late_ms": 1500}  # fmt: skip


def test_a_day_has_its_hours_and_no_others() -> None:
    hours = [hour(10, 3, 1), hour(12, 2, 0), hour(9, 50, 0), hour(13, 50, 0), hour(12, 1, 0, "z")]
    one, other = days(["a", "b"], hours, 13 * HOUR, HOUR, 3)
    assert [(bar.x, bar.state) for bar in one.success.bars] == [
        (0, "failed"), (0, "succeeded"), (18, "succeeded"),
    ]  # fmt: skip
    assert [bar.height for bar in one.success.bars] == [HEIGHT, HEIGHT * 3 / 4, HEIGHT / 2]
    assert (one.runs, one.failed, one.late_ms) == (6, 1, 1500)
    assert one.success.text == "5 of 6 runs succeeded in 24 hours"
    assert one.lateness.text == "At most 1.5 s late in 24 hours"
    assert (other.job, other.runs, other.success.bars) == ("b", 0, [])


@pytest.mark.parametrize(
    ("ms", "says"),
    [(None, ""), (0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (90_000, "2 min"),
     (2 * HOUR, "2 h"), (50 * HOUR, "2 days")],
)  # fmt: skip
def test_a_span_is_short(ms: float | None, says: str) -> None:
    assert span(ms) == says
