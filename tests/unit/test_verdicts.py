"""The one word for how a tick went: each case, when a tick is late, and what the journal tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from solocron.cron.job import Job
from solocron.cron.journal import MAX_DETAIL, Entry, Journal, entry_of
from solocron.cron.outcome import BEGUN, SKIPPED, VERDICTS, Outcome, late_after_ms, verdict_of
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar

TICK = 1_800_000_000_000  # a half hour
RAN = Outcome("succeeded", attempt=1, begun_ms=TICK + 5)


async def _body(run: Run) -> None: ...


def job(expression: str = "*/30 * * * *") -> Job:
    return Job(name="one", calendar=Calendar(expression), body=_body)


def skip(reason: str, **options: Any) -> Outcome:
    return Outcome("skipped", reason, **options)


@pytest.mark.parametrize(
    ("verdict", "outcome", "origin"),
    [
        ("ran", RAN, "schedule"),
        ("ran", RAN, "manual"),
        ("ran", replace(RAN, begun_ms=TICK + 18_000), "schedule"),
        ("late", replace(RAN, begun_ms=TICK + 18_001), "schedule"),
        ("ran", replace(RAN, begun_ms=TICK - 300), "schedule"),  # a clock that is ahead
        ("ran", replace(RAN, attempt=3), "schedule"),  # its own attempts
        ("recovered", RAN, "sweep"),
        ("recovered", replace(RAN, attempt=2, taken_over=True), "schedule"),
        ("recovered", replace(RAN, attempt=2, taken_over=True), "ledger"),
        ("recovered", replace(RAN, fallback=True), "sweep"),
        ("fallback", replace(RAN, fallback=True), "schedule"),
        ("fallback", replace(RAN, fallback=True, begun_ms=TICK + 60_000), "schedule"),
        ("failed", Outcome("failed", "ValueError: no", 3, begun_ms=TICK), "sweep"),
        ("lost", Outcome("lost", "the lock was deleted", 1, begun_ms=TICK), "schedule"),
        ("lost", Outcome("lost", "before it began"), "sweep"),
        ("held", skip("held", detail="w:1:ab:0"), "schedule"),
        ("done", skip("done"), "sweep"),
        ("overlap", skip("overlap"), "schedule"),
        ("redis-down", skip("redis-down"), "schedule"),
        ("database-down", skip("database-down"), "sweep"),
        ("paused", skip("paused"), "schedule"),
        ("clock-skew", skip("clock-skew"), "schedule"),
        ("missed", skip("missed"), "sweep"),
        ("duplicate-prevented", skip("done", by_ledger=True), "schedule"),
        ("duplicate-prevented", skip("held", by_ledger=True), "sweep"),
    ],
)
def test_the_verdict_of_each_case(verdict: str, outcome: Outcome, origin: str) -> None:
    assert verdict_of(job(), TICK, outcome, origin) == verdict
    assert verdict in VERDICTS
    assert set(VERDICTS) == {*BEGUN, *SKIPPED}


@pytest.mark.parametrize(
    ("expression", "late_after"),
    [("* * * * * *", 1000), ("* * * * *", 1000), ("*/5 * * * *", 3000), ("*/30 * * * *", 18_000),
     ("0 * * * *", 30_000), ("0 0 1 1 *", 30_000)],
)  # fmt: skip
def test_late_is_a_hundredth_of_the_interval_within_bounds(
    expression: str, late_after: int
) -> None:
    calendar = Calendar(expression)
    tick = calendar.next_after(TICK)
    assert late_after_ms(calendar, tick) == late_after


def test_an_entry_says_why_and_how_late() -> None:
    entry = entry_of(job(), TICK, replace(RAN, duration_ms=70), "schedule", TICK + 80.9)
    assert entry == Entry("one", TICK, "ran", "", 1, 5, 70, TICK + 80)
    failed = Outcome("failed", "x" * 1000, 3, begun_ms=TICK)
    assert entry_of(job(), TICK, failed, "schedule", TICK).detail == "x" * MAX_DETAIL
    failed = Outcome("failed", "no \0 file \udcff", 1, begun_ms=TICK)
    assert entry_of(job(), TICK, failed, "schedule", TICK).detail == "no \\u0000 file \\udcff"
    prevented = skip("held", attempt=1, detail="w:1", by_ledger=True)
    entry = entry_of(job(), TICK, prevented, "schedule", TICK)
    assert (entry.detail, entry.attempt, entry.begun) == ("held: w:1", 0, False)


def noted(*verdicts: str) -> tuple[list[str], Entry | None]:
    """(what a journal told of one tick, what stands for it in the end)."""
    journal, told = Journal(), list[str]()
    journal.listen(lambda entry: told.append(entry.verdict))
    for number, verdict in enumerate(verdicts):
        journal.note(Entry("one", TICK, verdict, at_ms=number))
    return told, journal.standing("one", TICK)


def test_a_tick_tried_again_in_vain_is_told_once() -> None:
    told, standing = noted("database-down", "database-down", "database-down", "recovered")
    assert told == ["database-down", "recovered"]
    assert standing is not None and standing.verdict == "recovered"


def test_no_skip_stands_for_a_tick_that_was_begun_here() -> None:
    told, standing = noted("held", "lost", "recovered", "duplicate-prevented", "done")
    assert told == ["held", "lost", "recovered", "duplicate-prevented", "done"]
    assert standing is not None and standing.verdict == "recovered"


def test_each_run_is_told() -> None:
    assert noted("lost", "lost")[0] == ["lost", "lost"]


def test_the_journal_is_bounded_and_survives_its_listeners() -> None:
    journal, told = Journal(kept=10), list[int]()

    def broken(entry: Entry) -> None:
        raise ValueError("no")

    journal.listen(broken)
    journal.listen(lambda entry: told.append(entry.tick))
    for number in range(100):
        journal.note(Entry("one", TICK + number, "ran"))
    assert len(told) == 100
    assert [n for n in range(100) if journal.standing("one", TICK + n)] == list(range(90, 100))
