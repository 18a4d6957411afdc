"""What is an alert and when it is over: the rules, by table and by anything that can happen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.alerts.look import Silence, differences, overruns, silences
from solocron.alerts.rules import FACTS, KINDS, Change, Rules
from solocron.alerts.teller import message_of
from solocron.cron.board import Presence
from solocron.cron.job import Job
from solocron.cron.journal import Entry
from solocron.cron.outcome import VERDICTS
from solocron.cron.run import Run
from solocron.cron.silence import not_replaced
from solocron.cron.ticks import Calendar
from solocron.storage.alerts import Alert

AFTER = 5.0
REDIS = ("redis-down", "")


def watched(name: str, *seen: tuple[float, bool]) -> list[tuple[float, str]]:
    """When (s) the alert was raised or resolved, of a condition seen (at, holding)."""
    rules, found = Rules(AFTER), list[tuple[float, str]]()
    for at_s, holds in seen:
        for change in rules.observe(at_s, at_s * 1000, {(name, ""): "text"} if holds else {}):
            found.append((at_s, change.what))
    return found


@pytest.mark.parametrize(
    ("name", "seen", "changes"),
    [
        ("redis-down", [(0, True), (4.9, True), (5, True)], [(5, "raised")]),
        ("redis-down", [(0, True), (4, False), (6, True), (10, True)], []),  # away twice, shortly
        (
            "redis-down",
            [(0, True), (5, True), (6, False), (10.9, False), (11, False)],
            [(5, "raised"), (11, "resolved")],
        ),
        (  # back for a moment is not back
            "database-down",
            [(0, True), (5, True), (6, False), (10, True), (12, False), (16, False), (17, False)],
            [(5, "raised"), (17, "resolved")],
        ),
        ("clock-skew", [(0, True), (1, False), (6, False)], [(0, "raised"), (6, "resolved")]),
        ("dead-letters", [(0, True), (1, False)], [(0, "raised"), (1, "resolved")]),
        ("lock-unavailable", [(0, True), (9, False)], [(0, "raised"), (9, "resolved")]),
        ("job-overran", [(0, True), (9, False)], [(0, "raised"), (9, "resolved")]),
        ("schedules-differ", [(0, True), (59, True), (59.5, False)], []),  # a rolling deploy
        (
            "schedules-differ",
            [(0, True), (60, True), (61, False), (66, False)],
            [(60, "raised"), (66, "resolved")],
        ),
    ],
)
def test_a_condition_is_raised_and_resolved_after_its_time(
    name: str, seen: list[tuple[float, bool]], changes: list[tuple[float, str]]
) -> None:
    assert watched(name, *seen) == changes


# After how many s of it a condition is raised, and after how many without it resolved; of a fact
# the verdicts that state it and end it.
CONDITIONS = {
    "lock-unavailable": (0, 0), "job-overran": (0, 0), "redis-down": (5, 5),
    "database-down": (5, 5), "clock-skew": (0, 5), "schedules-differ": (60, 5),
    "worker-silent": (0, 0), "dead-letters": (0, 0),
}  # fmt: skip
STATED = {"job-failed": ("failed", "ran"), "tick-missed": ("missed", "ran")}


@pytest.mark.parametrize("name", KINDS)  # one that is in neither table fails
def test_each_alert_is_raised_and_resolved(name: str) -> None:
    if name in FACTS:
        rules = Rules(AFTER)
        told = [
            [f"{each.what} {each.alert.name}" for each in rules.note(Entry("one", tick, verdict))]
            for tick, verdict in enumerate(STATED[name])
        ]
        assert told == [[f"raised {name}"], [f"resolved {name}"]]
        return
    raised_s, resolved_s = CONDITIONS[name]
    gone_s = raised_s + 10
    over_s = gone_s + resolved_s
    seen = [(0, True), (raised_s, True), (gone_s - 1, True), (gone_s, False), (over_s, False)]
    assert watched(name, *seen, (over_s + 99, False)) == [
        (raised_s, "raised"),
        (over_s, "resolved"),
    ]
    early = [(0, True), (raised_s - 0.1, True)] if raised_s else []
    assert watched(name, *early) == []


def test_the_tables_hold_no_other_alert() -> None:
    assert {*CONDITIONS, *STATED} == set(KINDS)


@pytest.mark.parametrize(
    ("entries", "changes"),
    [
        ([("failed", 1), ("ran", 2)], ["raised job-failed", "resolved job-failed"]),
        ([("failed", 1), ("failed", 2), ("late", 3)], ["raised job-failed", "resolved job-failed"]),
        ([("failed", 2), ("recovered", 1)], ["raised job-failed"]),  # an older tick says nothing
        ([("ran", 2), ("failed", 1)], []),  # it has run since
        ([("failed", 1), ("lost", 2), ("held", 3), ("done", 4)], ["raised job-failed"]),
        ([("missed", 1), ("missed", 2), ("held", 3)], ["raised tick-missed"]),
        ([("missed", 1), ("fallback", 2)], ["raised tick-missed", "resolved tick-missed"]),
        (
            [("missed", 1), ("failed", 2)],
            ["raised tick-missed", "raised job-failed", "resolved tick-missed"],
        ),
    ],
)
def test_a_fact_stands_until_a_later_run(
    entries: list[tuple[str, int]], changes: list[str]
) -> None:
    rules, found = Rules(AFTER), list[Change]()
    for verdict, tick in entries:
        found += rules.note(Entry("one", tick, verdict))
    assert [f"{each.what} {each.alert.name}" for each in found] == changes


def test_what_could_not_be_found_out_changes_nothing() -> None:
    rules, place = Rules(AFTER), ("dead-letters", "")
    assert [each.what for each in rules.observe(0, 0, {place: "3 are dead"})] == ["raised"]
    assert rules.observe(100, 0, {}, {"dead-letters"}) == []
    assert [each.alert.id for each in rules.observe(101, 0, {})] == [place]


def test_what_another_worker_ended_is_over_and_what_it_ended_is_known() -> None:
    rules = Rules(AFTER)
    (raised,) = rules.note(Entry("one", 5, "failed"))
    assert rules.is_over(raised.alert) is None
    assert [each.what for each in rules.forget(("job-failed", "one"))] == ["resolved"]
    assert rules.forget(("job-failed", "one")) == []
    rules.note(Entry("one", 7, "ran"))
    assert rules.is_over(raised.alert) == 7
    assert rules.is_over(Alert("job-failed", "one", 8, "", "critical", 8)) is None


OBSERVED = st.dictionaries(
    st.sampled_from([(name, "") for name in KINDS if name not in FACTS]), st.just("text")
)
HAPPENED = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["one", "two"]),
        st.integers(0, 5),
        st.sampled_from(VERDICTS),
    )
    | st.tuples(st.floats(0, 90), OBSERVED, st.sets(st.sampled_from(list(KINDS))))
    | st.tuples(st.sampled_from(sorted(FACTS)), st.sampled_from(["one", "two"]))
)


@given(happened=HAPPENED)
def test_never_two_raised_in_a_row_and_never_resolved_without_raised(
    happened: list[object],
) -> None:
    rules, at_s, raised = Rules(AFTER), 0.0, set[tuple[str, str]]()
    for each in happened:
        match each:
            case Entry():
                changes = rules.note(each)
            case (float() | int() as passed, dict() as holding, unknown):
                at_s += passed
                changes = rules.observe(at_s, at_s * 1000, holding, unknown)  # type: ignore[arg-type]  # as drawn
            case id_:
                changes = rules.forget(id_)  # type: ignore[arg-type]  # as drawn
        for change in changes:
            assert (change.alert.id in raised) == (change.what == "resolved")
            raised ^= {change.alert.id}
        assert raised == set(rules.raised)


async def _body(run: Run) -> None: ...


def test_a_run_overruns_what_is_expected_of_it_or_its_ttl() -> None:
    def job(name: str, **options: int) -> Job:
        return Job(name=name, calendar=Calendar("* * * * *"), body=_body, **options)

    running = [
        (job("short", expected_ms=2000), 0.0), (job("young", expected_ms=2000), 9.0),
        (job("long", ttl_ms=9000), 0.0), (job("free"), 0.0),
    ]  # fmt: skip
    assert set(overruns(running, 10.0)) == {("job-overran", "short"), ("job-overran", "long")}


def test_schedules_differ_of_workers_that_live() -> None:
    def seen(worker: str, **schedules: str) -> Presence:
        return Presence(
            worker=worker, host="h", pid=1, version="0", started_ms=0, seen_ms=1,
            schedules=schedules,
        )  # fmt: skip

    workers = [seen("w1", a="1", b="1"), seen("w2", a="1", other="2"), seen("w3", b="2")]
    ((id_, text),) = differences(workers).items()
    assert id_ == ("schedules-differ", "b")
    assert text.startswith("job b has more than one schedule: '1' on w1; '2' on w3: give")
    assert differences(workers[:2]) == {} == differences([])
    many = [seen(f"w{n}", b=str(n % 2)) for n in range(9)]
    assert "'1' on w1, w3, w5 and 1 more: give" in differences(many)["schedules-differ", "b"]
    apart = [seen(f"{n}" * 300, b=f"{n}" * 300) for n in range(9)]
    assert len(differences(apart)["schedules-differ", "b"]) < 1000


def test_schedules_may_differ_for_as_long_as_a_server_may_be_silent() -> None:
    rules, place = Rules(AFTER, 70), ("schedules-differ", "one")
    assert rules.observe(0, 0, {place: "two"}) == rules.observe(69, 0, {place: "three"}) == []
    (change,) = rules.observe(70, 0, {place: "four"})
    assert change.text == "four"  # as it is when it is told


def told(worker: str, seen_ms: int, started_ms: int = 0, skew_ms: int = 0) -> Presence:
    return Presence(
        worker=worker, host="h", pid=1, version="0", started_ms=started_ms, seen_ms=seen_ms,
        skew_ms=skew_ms, schedules={},
    )  # fmt: skip


def names(workers: Iterable[Presence]) -> list[str]:
    return [each.worker for each in workers]


def test_a_worker_is_silent_once_it_has_told_nothing_new_for_so_long() -> None:
    silence = Silence(5)
    wrong_clock = -3_600_000  # it counts by what is new, not by what the clocks say
    assert silence([told("dead", wrong_clock), told("alive", 1, wrong_clock)], 100) == []
    assert silence([told("dead", wrong_clock), told("alive", 2, wrong_clock)], 104.9) == []
    assert names(silence([told("dead", wrong_clock), told("alive", 3, wrong_clock)], 105)) == [
        "dead"
    ]
    assert silence([told("dead", wrong_clock + 1), told("alive", 4)], 106) == []  # it is back
    assert names(silence([told("alive", 4)], 120)) == ["alive"]
    silence.forget()
    assert names(silence([told("alive", 4)], 121)) == ["alive"]  # nothing says that it is back
    assert silence([told("alive", 5)], 122) == []
    silence.forget()
    assert silence([told("alive", 5)], 129) == []
    assert silence([], 130) == []


def silent_at(*at_s: float) -> Silence:
    """One to which `gone` is silent from the last moment on, and `old`, which `new` replaced."""
    silence = Silence(5)
    for at in at_s:
        board = [told("old", 10), told("gone", 20), told("new", int(at) + 99, started_ms=30)]
        found = silence([*board, told("me", int(at) + 99)], at)
    assert names(found) == ["gone"]
    return silence


def test_who_was_silent_stays_so_though_redis_lost_its_data() -> None:
    silence = silent_at(100, 105)
    for at_s, is_lost in ((106, True), (107, True), (108, False), (86_499, False)):
        assert names(silence([told("me", at_s)], at_s, is_lost=is_lost)) == ["gone"], at_s
    assert silence([told("me", 400)], 86_500) == []  # a day is over


def test_who_was_silent_when_redis_lost_its_data_is_so_until_it_is_back_or_replaced() -> None:
    me = told("me", 300)
    silence = silent_at(100, 105)
    silence.forget()  # as Redis was away
    assert names(silence([me], 106, is_lost=True)) == ["gone"]
    assert silence([told("gone", 400), me], 107) == []
    assert silence([me], 108) == []  # it stopped by itself
    silence = silent_at(100, 105)
    assert names(silence([me], 106, is_lost=True)) == ["gone"]
    board = [told("new", 300, started_ms=30), me]
    assert names(silence(board, 107)) == ["gone"]
    assert silence([told("next", 400, started_ms=390), *board], 108) == []
    silence = silent_at(100, 105)
    assert silence([me], 106) == []  # it left, of a board that nobody lost


def test_who_was_replaced_is_so_though_its_replacement_stops() -> None:
    silence = silent_at(100, 105)
    board = [told("old", 10), told("gone", 20)]
    assert names(silence(board, 106)) == ["gone"]
    assert silence([told("old", 400), told("gone", 400)], 107) == []
    assert names(silence([told("old", 400), told("gone", 401)], 112)) == ["old"]  # anew


@pytest.mark.parametrize(
    ("workers", "named"),
    [
        ([told("a", 10), told("me", 100)], ["a"]),
        ([told("a", 10), told("me", 100, started_ms=11)], []),  # replaced
        ([told("a", 10), told("b", 20), told("me", 100, started_ms=21)], ["b"]),
        ([told("a", 10), told("b", 20), told("me", 100, started_ms=11)], ["b"]),
        ([told("a", 10), told("b", 20, started_ms=11), told("me", 100)], ["b"]),  # in its turn
        ([told("a", 10), told("me", 100, started_ms=60, skew_ms=55)], ["a"]),  # a clock ahead
        ([told("a", 10), told("b", 20), told("me", 100)], ["a", "b"]),
        ([told("me", 100)], []),
    ],
)
def test_each_silent_worker_is_an_alert_unless_another_replaced_it(
    workers: list[Presence], named: list[str]
) -> None:
    found = silences(not_replaced(workers, {"a", "b"}))
    assert list(found) == [("worker-silent", each) for each in named]
    assert all(text.startswith(f"{name}: silent") for (_, name), text in found.items())


def test_a_silent_workers_name_is_kept_as_it_can_be() -> None:
    ((_, about),) = silences([told("h" * 100 + "\0:1:abc", 1)])
    assert about == "h" * 93 + "?:1:abc"


def test_a_message_has_no_line_of_a_values_own_and_names_problem_and_end_alike() -> None:
    alert = Alert("job-failed", "one", 86_400_000, "vm:7: it failed:\r\nBcc: x", "critical", 0)
    messages = {
        what: message_of(Change(what, alert, alert.text), "staging", 1000, "h:1:a")
        for what in ("raised", "resolved")
    }
    assert [each.subject for each in messages.values()] == [
        "ALARM: job-failed one (staging)", "RESOLVED: job-failed one (staging)",
    ]  # fmt: skip
    lines = messages["raised"].body.splitlines()
    assert lines == [
        "vm:7: it failed:  Bcc: x", "",
        "Since 1970-01-01 00:00:00 UTC, critical. Told by h:1:a at 00:00:01.", "",
        "(alarm job-failed one 0)",
    ]  # fmt: skip
    over = messages["resolved"].body.splitlines()
    assert over[:-1] == lines[:-1] and over[-1] == lines[-1].replace("alarm", "resolved")
    assert messages["raised"].id != messages["resolved"].id


def test_a_message_says_how_bad_it_is() -> None:
    def kind(what: Literal["raised", "resolved"], severity: str) -> str:
        return message_of(Change(what, Alert("a", "", 0, "t", severity, 0), "t"), "", 0, "w").kind

    assert kind("raised", "critical") == "failure"
    assert kind("raised", "warning") == "warning"
    assert kind("resolved", "critical") == kind("resolved", "warning") == "success"


def test_every_rule_has_its_words() -> None:
    by_name: Mapping[str, str] = {name: kind.over for name, kind in KINDS.items()}
    assert all(by_name.values()) and {kind.severity for kind in KINDS.values()} == {
        "critical", "warning",
    }  # fmt: skip
