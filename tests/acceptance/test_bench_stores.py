"""The benchmark of the store jobs, in small: it measures all it says, and closes what is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benches import bench, results
from benchmarks.stores.load import all_hours, hours
from solocron.stores.hours import check_hours, state_at

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.mark.timeout(240)
async def test_a_small_run_measures_each_thing_on_both_databases(tmp_path: Path) -> None:
    ran = await bench("stores", "--quick", folder=tmp_path)
    assert ran.code == 0, ran.err
    for aim in ("x plain statements, aim <= 1.3", "aim <= 150", "ms p99, aim <= 20", "aim <= 1:"):
        assert aim in ran.out, ran.out
    document, text = results("stores", tmp_path)
    assert "plain statements, Po 20 h" in text and "solocron, SQ 20 h" in text
    assert len(document["figures"]) == 4
    for figures in document["figures"].values():
        assert 0 < figures["run_s"] <= figures["told_s"] and figures["plain_s"] > 0
        assert 0 < figures["heard_p50_ms"] <= figures["heard_p99_ms"]


async def test_help_says_what_is_measured(tmp_path: Path) -> None:
    ran = await bench("stores", "--help", folder=tmp_path)
    assert ran.code == 0 and "closes stores whose hours have" in ran.out


def test_each_hours_are_another_text() -> None:
    found = all_hours(50_000)
    assert len(set(found)) == 50_000


@pytest.mark.parametrize("later_m", [0, 60, 110])
@pytest.mark.parametrize("at", [NOON, NOON.replace(hour=23), NOON.replace(hour=0)])
def test_those_of_even_numbers_have_ended_and_the_others_go_on(at: datetime, later_m: int) -> None:
    moment = (at + timedelta(minutes=later_m)).timestamp() * 1000
    for number in (0, 1, 498, 499, 500, 501, 49_998, 49_999):
        text = hours(number, at)
        check_hours(text, "UTC", "")
        assert state_at(text, "UTC", "", moment) == ("open" if number % 2 else "closed")
