"""The calendar: both directions agree, over zones and daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError

EXPRESSIONS = [
    "0 0,6 * * *",
    "*/30 * * * *",
    "30 2 * * *",
    "0 0 * * *",
    "*/7 * * * * *",
    "0 3 * * 1",
]
ZONES = [
    "UTC",
    "Europe/Berlin",
    "Africa/Cairo",
    "America/Havana",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
]
MOMENTS = st.integers(1_735_689_600_000, 1_830_297_600_000)  # 2025 to 2027


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS)
def test_latest_and_next_enclose_every_moment(expression: str, zone: str, moment: int) -> None:
    calendar = Calendar(expression, zone)
    latest, following = calendar.latest_at(moment), calendar.next_after(moment)
    assert latest is not None and latest <= moment < following
    assert calendar.next_after(latest) == following
    assert calendar.next_after(latest - 1) == latest
    assert calendar.between(latest - 1, following, 10) == [latest, following]


def test_a_midnight_that_does_not_exist_runs_at_the_next_hour() -> None:
    calendar = Calendar("0 0 * * *", "Africa/Cairo")  # 2026-04-24 has no 00:00
    assert calendar.next_after(ms("2026-04-23T12:00")) == ms("2026-04-23T22:00")


def test_a_fixed_time_that_comes_twice_runs_once() -> None:
    calendar = Calendar("30 2 * * *", "Europe/Berlin")  # falls back on 2026-10-25
    assert len(calendar.between(ms("2026-10-24T12:00"), ms("2026-10-25T12:00"), 10)) == 1


def test_half_hours_of_a_fall_back_night_are_distinct_ticks() -> None:
    calendar = Calendar("*/30 * * * *", "Europe/Berlin")
    ticks = calendar.between(ms("2026-10-24T22:00"), ms("2026-10-25T04:00"), 100)
    assert ticks == list(range(ms("2026-10-24T22:30"), ms("2026-10-25T04:00") + 1, 1_800_000))


@pytest.mark.parametrize("expression", ["", "* * *", "61 * * * *", "x" * 300, "0 0 30 2 *"])
def test_a_bad_cron_expression_is_named(expression: str) -> None:
    with pytest.raises(ConfigError, match="cron expression"):
        Calendar(expression)


def test_a_bad_zone_is_named() -> None:
    with pytest.raises(ConfigError, match="Europe/Berlinn"):
        Calendar("* * * * *", "Europe/Berlinn")


def test_a_calendar_asked_again_goes_on_from_its_last_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches: list[float] = []
    search = Calendar._search

    def counted(self: Calendar, ms: float) -> int:
        searches.append(ms)
        return search(self, ms)

    calendar, half_h = Calendar("*/30 * * * *"), 1_800_000
    tick = calendar.latest_at(1_800_000_000_000)
    assert tick is not None
    monkeypatch.setattr(Calendar, "_search", counted)
    assert calendar.latest_at(tick + half_h - 1) == tick
    assert calendar.next_after(tick) == calendar.next_after(tick + half_h - 1) == tick + half_h
    assert searches == []
    assert calendar.latest_at(tick + half_h) == tick + half_h
    assert len(searches) == 1
    assert calendar.next_after(tick + half_h) == tick + 2 * half_h
    assert calendar.latest_at(tick + half_h - 1) == calendar.latest_at(tick) == tick
    assert len(searches) == 1
    assert calendar.next_after(tick - 9) == tick
    assert calendar.next_after(tick - 9) == tick
    assert len(searches) == 2


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Africa/Cairo"])
@pytest.mark.parametrize("expression", ["*/30 * * * *", "30 2 * * *", "0 0 * * *", "0 0 1 1 *"])
def test_what_it_remembers_changes_no_answer(expression: str, zone: str) -> None:
    remembering = Calendar(expression, zone)
    for start in (1_792_880_000_000, 1_776_980_000_000, 1_774_740_000_000):  # autumn, spring
        for step in [*range(60), 30, 10, 59, 0]:
            ms = start + step * 1_234_567
            assert remembering.latest_at(ms) == Calendar(expression, zone).latest_at(ms)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS,
    st.lists(st.tuples(st.booleans(), st.integers(-100, 100), st.sampled_from([1, 500, 7e6]))),
)  # fmt: skip
def test_it_answers_alike_in_whatever_order_it_is_asked(
    expression: str, zone: str, moment: int, asked: list[tuple[bool, int, float]]
) -> None:
    remembering = Calendar(expression, zone)
    for forward, step, size in asked:
        ms, fresh = moment + step * size, Calendar(expression, zone)
        if forward:
            assert remembering.next_after(ms) == fresh.next_after(ms)
        else:
            assert remembering.latest_at(ms) == fresh.latest_at(ms)
