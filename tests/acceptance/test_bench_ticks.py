"""The benchmark of the ticks, in small: it measures all it says, and tells what it could not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches import bench, results
from benchmarks.ticks.plan import NEVER, Plan


@pytest.mark.timeout(240)
async def test_a_small_run_measures_each_thing_and_lists_the_peers_that_are_missing(
    tmp_path: Path,
) -> None:
    ran = await bench("ticks", "--quick", folder=tmp_path)
    assert ran.code == 0, ran.err
    for row in ("100 jobs, each every 60 s: ms late, p99", "100 jobs, none due: % of a core"):
        assert row in ran.out, ran.out
    for peer in ("aiocron", "APScheduler", "arq", "procrastinate"):
        assert f"{peer}: not measured" in ran.out and "make peers-ticks" in ran.out
    document, text = results("ticks", tmp_path)
    assert "solocron" in text and "How late a body begins, p99" in text
    figures = document["figures"]["100 jobs, each every 60 s"]["solocron"]
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    one, some = document["per_tick"]
    assert (one["workers"], some["workers"]) == (1, 3)
    assert round(one["scripts"]) == 2 and some["scripts_per_loser"] <= 1.2
    assert round(one["statements"]) == round(some["statements"]) <= 4


async def test_help_says_what_is_measured(tmp_path: Path) -> None:
    ran = await bench("ticks", "--help", folder=tmp_path)
    assert ran.code == 0 and "from a tick's nominal time to its body's" in ran.out


def test_a_plan_has_each_job_due_at_its_own_second() -> None:
    plan = Plan(100, 10)
    assert plan.cron(23) == "3,13,23,33,43,53 * * * * *"
    assert plan.cron(23, last=True) == "* * * * * 3,13,23,33,43,53"
    assert Plan(1, 0).cron(0) == NEVER


def test_a_plan_may_have_all_jobs_due_together() -> None:
    plan = Plan(100, 20, together=True)
    assert plan.cron(23) == plan.cron(99) == "0,20,40 * * * * *"
    assert plan.late_ms(23, 40.25) == pytest.approx(250)


@pytest.mark.parametrize(("now_s", "late_ms"), [(43.0, 0), (45.5, 2500), (52.99, -10), (3.25, 250)])
def test_lateness_is_counted_from_the_newest_time_that_came_or_is_just_ahead(
    now_s: float, late_ms: float
) -> None:
    assert Plan(100, 10).late_ms(23, now_s) == pytest.approx(late_ms, abs=1e-6)
