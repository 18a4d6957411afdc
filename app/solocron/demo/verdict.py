"""What the demo proves, judged from three witnesses that know nothing of each other. Pure.

The run ledger says what each tick came to, the workers' log lines say who began it, and the
client's frames say what was delivered. A tick that one worker left half done (killed, or its lease
lost) and another finished ran once: the ledger refuses the first attempt's writes from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

_MOST_PROBLEMS = 10  # per kind, that are told in words


class Due(NamedTuple):
    """One tick of one job; `tick` in UTC epoch ms."""

    job: str
    tick: int

    def __str__(self) -> str:
        return f"{self.job} at {datetime.fromtimestamp(self.tick / 1000, UTC):%d %b %H:%M}"


class Start(NamedTuple):
    """A worker's word that it began an attempt of a tick."""

    due: Due
    worker: str
    attempt: int


class Record(NamedTuple):
    """The ledger's word on a tick."""

    state: str
    attempt: int


@dataclass(frozen=True)
class Facts:
    """`due`: the ticks that had to run; `given_up`: starts whose worker was killed or said that it
    lost the run; `sent`: the newest seq of each store in the table; `received`: the seqs the
    client got, in the order it got them; `may_fail`: jobs whose failure is a run like another."""

    due: Sequence[Due]
    ledger: Mapping[Due, Record]
    starts: Sequence[Start]
    given_up: Set[Start]
    sent: Mapping[str, int]
    received: Mapping[str, Sequence[int]]
    may_fail: Set[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """Counts, and in words what is wrong with them."""

    ticks: int
    runs: int
    taken_over: int
    doubled: int
    missed: int
    sent: int
    received: int
    lost: int
    repeated: int
    problems: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether every tick ran once, and every notification came once and in order."""
        return self.ticks > 0 and not self.problems


def verdict(facts: Facts) -> Verdict:
    """Judge the facts."""
    missed = [_missing(due, facts) for due in facts.due if not _has_run(due, facts)]
    began: dict[Due, list[Start]] = {}
    for start in facts.starts:
        began.setdefault(start.due, []).append(start)
    doubled = []
    for due, starts in began.items():
        if reason := _doubled(starts, facts):
            doubled.append(f"{due} ran more than once: {reason}")
    stray = [f"{due} ran and was not due" for due in {*facts.ledger, *began} - {*facts.due}]
    lost, repeated, disorder = _delivery(facts)
    return Verdict(
        ticks=len(facts.due),
        runs=sum(_has_run(due, facts) for due in facts.ledger),
        taken_over=sum(record.attempt > 1 for record in facts.ledger.values()),
        doubled=len(doubled) + len(stray),
        missed=len(missed),
        sent=sum(facts.sent.values()),
        received=sum(len(seqs) for seqs in facts.received.values()),
        lost=sum(lost.values()),
        repeated=sum(repeated.values()),
        problems=(
            *_some(missed), *_some(doubled), *_some(stray),
            *_some([f"store {each}: {n} notifications lost" for each, n in lost.items()]),
            *_some([f"store {each}: {n} notifications repeated" for each, n in repeated.items()]),
            *_some([f"store {each}: notifications out of order" for each in disorder]),
        ),
    )  # fmt: skip


def _has_run(due: Due, facts: Facts) -> bool:
    record = facts.ledger.get(due)
    good = ("succeeded", "failed") if due.job in facts.may_fail else ("succeeded",)
    return record is not None and record.state in good


def _missing(due: Due, facts: Facts) -> str:
    record = facts.ledger.get(due)
    return f"{due} did not run" if record is None else f"{due} ended as {record.state!r}"


def _doubled(starts: Sequence[Start], facts: Facts) -> str | None:
    """Why these starts of one tick are more than one run. One attempt follows another only when
    the first one was given up."""
    last = max(start.attempt for start in starts)
    for attempt, times in Counter(start.attempt for start in starts).items():
        if times > 1:
            return f"attempt {attempt} began {times} times"
    for start in starts:
        if start.attempt < last and start not in facts.given_up:
            return f"worker {start.worker} kept attempt {start.attempt}, and yet {last} followed"
    return None


def _delivery(facts: Facts) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Per store, how many notifications were lost and repeated; and stores out of order."""
    lost, repeated, disorder = {}, {}, []
    for store_id in {*facts.sent, *facts.received}:
        wanted = set(range(1, facts.sent.get(store_id, 0) + 1))
        seqs = facts.received.get(store_id, ())
        got = set(seqs)
        if missing := len(wanted - got):
            lost[store_id] = missing
        if again := len(seqs) - len(got & wanted):
            repeated[store_id] = again
        if list(seqs) != sorted(seqs):
            disorder.append(store_id)
    return lost, repeated, disorder


def _some(problems: Sequence[str]) -> list[str]:
    more = len(problems) - _MOST_PROBLEMS
    return [*problems[:_MOST_PROBLEMS], *([f"... and {more} more like this"] if more > 0 else [])]
