"""The campaign's checker: rows without a flaw are green, and each kind of flaw is red by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from faults.campaign.check import Begin, Client, Effect, Facts, check, lateness, takeovers

TICKS = (1000, 2000, 3000)


def effect(tick: int, attempt: int = 1, *, applied: bool = True, notes: int = 1) -> Effect:
    return Effect(
        tick, attempt, applied, notes if applied else 0, at_ms=50_000 + (tick - 1000) / 10
    )


FLAWLESS = Facts(
    first=1000, last=3000, anchor_ms=50_000, rate=10.0,
    ledger=dict.fromkeys(TICKS, (1, "succeeded")),
    effects=[effect(tick) for tick in TICKS],
    begins=[Begin(tick, 1, "w1", 0) for tick in TICKS],
    told=[(tick, "shop") for tick in TICKS],
    counters={"shop": 3}, table={"shop": [1, 2, 3]},
    clients=[Client("client 0", {"shop": [1, 2, 3]})],
    faults={"flushall": 2},
)  # fmt: skip
TAKEN_OVER = {
    "ledger": {**FLAWLESS.ledger, 2000: (2, "succeeded")},
    "effects": [effect(1000), effect(2000), effect(2000, 2, applied=False), effect(3000)],
}


def heard(*seqs: int, refused: int = 0) -> dict[str, Any]:
    return {"clients": [Client("client 0", {"shop": list(seqs)}, refused)]}


def test_rows_without_a_flaw_are_green_and_counted() -> None:
    report = check(FLAWLESS)
    assert report.is_green and report.problems == []
    rows = dict(report.rows)
    assert rows["ticks in the window"] == "3"
    assert rows["notifications sent"] == "3, 3 to clients"
    assert rows["faults injected"] == "2" and rows["  flushall"] == "2"
    assert str(report).endswith("GREEN")


def test_a_tick_written_by_two_attempts_in_order_and_applied_once_is_a_takeover() -> None:
    assert check(replace(FLAWLESS, **TAKEN_OVER)).is_green


def test_ticks_around_the_window_need_not_be_there() -> None:
    assert check(replace(FLAWLESS, first=2000, last=2000)).is_green


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("lost ticks", {"ledger": {1000: (1, "succeeded"), 2000: (1, "succeeded")}}),
        ("lost ticks", {"ledger": {**FLAWLESS.ledger, 2000: (1, "running")}}),
        ("lost ticks", {"ledger": {**FLAWLESS.ledger, 2000: (3, "failed")}}),
        ("lost ticks", {"effects": FLAWLESS.effects[:2]}),
        ("lost ticks", {"last": 4000}),
        ("doubled effects", {"effects": [*FLAWLESS.effects, effect(3000, 1)]}),
        ("doubled effects", {"effects": [*FLAWLESS.effects, effect(3000, 1, applied=False)]}),
        ("doubled effects", {"effects": [*FLAWLESS.effects, effect(3000, 2, applied=False)]}),
        (
            "doubled effects",
            TAKEN_OVER | {"effects": [*FLAWLESS.effects, effect(2000, 2, applied=True)]},
        ),
        (
            "stale writes",
            TAKEN_OVER
            | {"effects": [effect(1000), effect(2000, 2), effect(2000, 1, applied=False)]},
        ),
        ("standstills", {"effects": [*FLAWLESS.effects[:2], effect(3000)._replace(at_ms=65_101)]}),
        ("strange ticks", {"effects": [*FLAWLESS.effects, effect(2500, notes=0)]}),
        ("torn effects", {"told": FLAWLESS.told[:2]}),
        ("torn effects", {"told": [*FLAWLESS.told, (3000, "other")]}),
        ("torn effects", {"told": [*FLAWLESS.told[:2], (2000, "shop")]}),
        ("gaps in the table", {"table": {"shop": [1, 3]}}),
        ("gaps in the table", {"table": {"shop": [1, 2, 3, 4]}}),
        ("unpublished notifications", {"unpublished": 1}),
        ("stores still open", {"still_open": 2}),
        ("lost notifications", heard(1, 3)),
        ("lost notifications", heard(1, 2)),
        ("lost notifications", heard()),
        ("repeated notifications", heard(1, 2, 2, 3)),
        ("disordered notifications", heard(1, 3, 2)),
        ("history refused", heard(1, 2, 3, refused=1)),
        ("nothing happened", {"clients": []}),
        ("nothing happened", {"last": 0}),
        ("nothing happened", {"counters": {}}),
    ],
)
def test_each_flaw_is_red_and_named(kind: str, changed: Mapping[str, Any]) -> None:
    report = check(replace(FLAWLESS, **changed))
    assert not report.is_green
    named = [problem for problem in report.problems if problem.startswith(f"{kind} (")]
    assert len(named) == 1
    assert f"RED: {named[0]}" in str(report)


def test_only_a_few_of_many_are_told() -> None:
    report = check(replace(FLAWLESS, last=100_000))
    assert report.problems[0].startswith("lost ticks (97): ")
    assert report.problems[0].endswith(" and 92 more")


def test_lateness_is_real_time_behind_the_fast_clock() -> None:
    late = replace(FLAWLESS, effects=[Effect(2000, 1, True, 1, at_ms=50_000 + 100 + 70)])
    assert lateness(late) == [70]


def test_a_takeover_is_another_workers_next_attempt() -> None:
    begins = [
        Begin(1000, 1, "w1", 100), Begin(1000, 2, "w1", 200), Begin(1000, 3, "w2", 2500),
        Begin(2000, 1, "w2", 3000),
    ]  # fmt: skip
    assert takeovers(begins) == [2300]
