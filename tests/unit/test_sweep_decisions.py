"""What the sweep and a claim decide, as promises over any calendar, ledger and moment."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.sweep import (
    ON_TIME_MS,
    Decision,
    decide,
    is_free,
    is_missed,
    is_next,
    left_out,
    ticks_to_run,
)
from solocron.cron.ticks import Calendar
from solocron.locks.results import Pause, Survey

EXPRESSIONS = ["* * * * * *", "*/30 * * * *", "0 0,6 * * *", "0 3 * * 1"]
NOW = 1_800_000_000_123.0
AGES = st.integers(0, 9 * 24 * 3_600_000)
WINDOWS = st.integers(0, 7 * 24 * 3_600_000)


async def _body(run: Run) -> None: ...


def job(
    expression: str, catch_up_ms: int = 3_600_000, overlap: Literal["skip", "queue"] = "skip"
) -> Job:
    return Job(
        name="any", calendar=Calendar(expression), body=_body, catch_up_ms=catch_up_ms,
        overlap=overlap,
    )  # fmt: skip


def latest(each: Job, at: float = NOW) -> int:
    tick = each.calendar.latest_at(at)
    assert tick is not None
    return tick


@settings(deadline=None)
@given(st.sampled_from(EXPRESSIONS), AGES, st.booleans(), WINDOWS, st.floats(0, 1000))
def test_a_decision_is_the_newest_unsettled_tick_of_the_window_or_names_it_as_missed(
    expression: str, age: int, at_a_tick: bool, window: int, grace: float
) -> None:
    one, settled = job(expression, window), int(NOW) - age
    if at_a_tick:
        settled = latest(one, settled)
    decision = decide(one, settled, NOW, grace_ms=grace)
    newest = latest(one, NOW - grace)
    if newest <= settled:
        assert decision == Decision()  # what is settled is never run again
    elif is_missed(one, newest, NOW):
        assert decision.tick is None  # what is too old is named and not run
        assert decision.missed and len(decision.missed) <= 100
        assert all(settled < tick <= newest for tick in decision.missed)
    else:
        assert decision == Decision(newest)  # only the newest, however many were missed


@given(st.sampled_from(EXPRESSIONS), WINDOWS)
def test_a_tick_on_time_is_never_missed_and_one_past_the_window_always_is(
    expression: str, window: int
) -> None:
    one = job(expression, window)
    assert not is_missed(one, int(NOW), NOW)
    assert not is_missed(one, int(NOW), NOW + window)
    assert is_missed(one, int(NOW), NOW + max(window, ON_TIME_MS) + 1)


@settings(deadline=None)
@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(["skip", "queue"]),
    st.one_of(st.just(-1), AGES.map(lambda age: int(NOW) - age)),
    st.lists(AGES.map(lambda age: int(NOW) - age), max_size=5),
    st.integers(0, 3_600_000),
)
def test_a_claim_runs_each_tick_once_in_order_and_none_outside_the_window(
    expression: str,
    overlap: Literal["skip", "queue"],
    settled: int,
    unfinished: list[int],
    window: int,
) -> None:
    one = job(expression, window, overlap)
    tick = latest(one)
    ticks = ticks_to_run(one, tick, settled=settled, unfinished=unfinished)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 1000
    assert all(tick - window <= each <= tick for each in ticks)
    assert ticks[-1] == tick or len(ticks) == 1000  # a cut backlog goes on at the next claim
    if overlap == "skip":
        assert set(ticks) - {tick} <= set(unfinished)
    elif settled >= 0:
        owed = one.calendar.between(max(settled, tick - window - 1), tick, 1000)
        assert set(owed[: 1000 - len(unfinished)]) <= set(ticks)


def test_a_long_backlog_is_worked_off_in_portions_and_never_ends_the_schedule() -> None:
    one = job("* * * * * *", 3_600_000, "queue")
    tick, settled, ran = latest(one), int(NOW) - 2500 * 1000, list[int]()
    while settled < tick:
        portion = ticks_to_run(one, tick, settled=settled, unfinished=())
        ran += portion
        settled = portion[-1]
    assert ran == list(range(ran[0], tick + 1, 1000)) and len(ran) == 2500


def test_ten_years_of_missed_ticks_are_decided_at_once() -> None:
    one = job("* * * * * *")
    began = time.monotonic()
    ten_years_ago = int(NOW) - 10 * 366 * 24 * 3_600_000
    assert decide(one, ten_years_ago, NOW, grace_ms=0) == Decision(latest(one))
    weekly = job("0 3 * * 1")
    assert len(decide(weekly, ten_years_ago, NOW, grace_ms=0).missed) == 100
    assert time.monotonic() - began < 1


@given(
    st.sampled_from(["", "locked", "a:b:c:d", "host:7:ab12:-1", "host:7:ab12:1000", "x:²"]),
    st.booleans(),
    st.booleans(),
)
def test_a_job_is_free_unless_paused_or_held_by_a_live_owner_or_an_older_server(
    owner: str, alive: bool, paused: bool
) -> None:
    survey = Survey(owner, 1000, alive, None, Pause("", 0, 1) if paused else None)
    older_server = owner in ("locked", "a:b:c:d", "x:²")
    held = older_server or (bool(owner) and alive)
    assert is_free(survey) == (not paused and not held)


@settings(deadline=None)
@given(st.sampled_from(EXPRESSIONS), AGES, WINDOWS, st.integers(1, 3_600_000))
def test_a_delayed_job_decides_as_one_without_a_delay_did_so_long_ago(
    expression: str, age: int, window: int, jitter: int
) -> None:
    plain = job(expression, window)
    late = replace(plain, jitter_ms=jitter)
    settled = int(NOW) - age
    assert decide(late, settled, NOW + late.delay_ms, grace_ms=0) == decide(
        plain, settled, NOW, grace_ms=0
    )


@settings(deadline=None)
@given(st.sampled_from(EXPRESSIONS), AGES, st.integers(2, 3_600_000))
def test_catch_up_of_all_runs_each_tick_of_the_window_and_of_none_only_what_began(
    expression: str, age: int, window: int
) -> None:
    every = replace(job(expression, window), catch_up="all")
    tick, settled = latest(every), int(NOW) - age
    wanted = ticks_to_run(every, tick, settled=settled, unfinished=[])
    since = max(settled, tick - window - 1)
    assert wanted[:-1] == every.calendar.between(since, tick - 1, 1000)[: len(wanted) - 1]
    assert wanted == sorted(set(wanted))
    none = replace(every, catch_up="skip")
    before = tick - window // 2
    assert ticks_to_run(none, tick, settled=settled, unfinished=[before]) == [before, tick]
    assert is_missed(none, tick - ON_TIME_MS, tick + 1.0)
    assert is_missed(none, before, tick, began=True) == (tick - before > max(window, ON_TIME_MS))


@settings(deadline=None)
@given(st.sampled_from(EXPRESSIONS), AGES, AGES, st.booleans())
def test_a_run_leaves_out_the_ticks_it_would_have_met_had_it_begun_on_time(
    expression: str, age: int, took: int, skips: bool
) -> None:
    one = replace(job(expression), catch_up="skip" if skips else "latest")
    tick = latest(one, NOW - age)
    newest = left_out(one, tick, took, NOW)
    if skips:  # what came is run now or never
        assert newest == latest(one)
    else:
        assert tick <= newest <= tick + took < one.calendar.next_after(newest)


@settings(deadline=None)
@given(st.sampled_from(EXPRESSIONS), AGES, WINDOWS, st.sampled_from(["skip", "queue"]))
def test_a_tick_is_next_if_nothing_is_run_or_missed_before_it(
    expression: str, age: int, window: int, overlap: Literal["skip", "queue"]
) -> None:
    one, settled = job(expression, window, overlap), int(NOW) - age
    tick = one.calendar.next_after(settled)
    for each in (tick, one.calendar.next_after(tick)):
        alone = ticks_to_run(one, each, settled=settled, unfinished=()) == [each]
        missed = one.every and one.calendar.between(settled, each - window - 1, 1)
        assert is_next(one, each, settled) is (alone and not missed)
    assert is_next(one, tick, -1) is not one.every
