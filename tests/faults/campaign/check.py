"""What a campaign proves, judged from what was written down. Pure.

The witnesses: the run ledger (`job_runs`), the rows the job's body wrote (`effects`), the table of
notifications, and what each WebSocket client received. The body writes one row in each
transaction that commits, and says in it whether it found the tick's effect already there; only
the first one `applied` changes stores. The rules, each of which turns the report red:

- *lost tick*: a tick of the window that the ledger does not have as succeeded, or that has no
  applied row.
- *doubled tick*: a tick with two applied rows; two rows of one attempt (an attempt commits once);
  or a row that no attempt the ledger knows of can have written (a higher one than its last).
- *stale write*: a row of an attempt that was written after a row of a later one. The run's row is
  locked while a body writes, so with the fence rows stand in the order of their attempts.
- *standstill*: for longer than any fault lasts (`STANDSTILL_MS`) no tick took effect anywhere:
  somebody waited for what would not come, and kept the others from it.
- *strange tick*: a row for a time that the schedule does not have.
- *torn effect*: the notifications of a tick that the table has are not those its applied row says
  it appended in the same transaction, or a store was told twice of one tick.
- *gap*: the seqs of a store in the table are not 1, 2, ... up to its counter.
- *unpublished*: a notification that no relay has published although all has been well for long.
- *still open*: a store that the real auto-close job should have closed.
- *lost / repeated / disordered notification*: a client did not receive each seq of each store it
  watches once and in order, over all its connections; or it was told that the history does not
  reach back to its last seq.
- a campaign in which nothing ran or nothing was sent proves nothing.

Ticks before the window ran while the workers started, later ones while they were stopped: they may
not be doubled, but nobody asks for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

_TOLD = 5  # problems of a kind that are told in words
LATE_MS = 1000.0
STANDSTILL_MS = 15_000.0


class Effect(NamedTuple):
    """A row that a body wrote; in the order of writing. `notes`: notifications appended with it."""

    tick: int
    attempt: int
    applied: bool
    notes: int
    at_ms: float


class Begin(NamedTuple):
    """A worker's word that it began an attempt, at real time `at_ms`."""

    tick: int
    attempt: int
    worker: str
    at_ms: float


@dataclass(frozen=True)
class Client:
    """What one client received: seqs per store in the order they came; `refused`: how often it
    was told that its history is gone."""

    name: str
    received: Mapping[str, Sequence[int]]
    refused: int = 0


@dataclass(frozen=True)
class Facts:
    """All that was written down. Ticks are scaled epoch ms: `first`, `first + step`, ... `last` is
    the window; a tick is due at the real time `anchor_ms + (tick - first) / rate` on the fastest
    clock.

    `ledger`: tick -> (attempt, state); `counters`: store -> its newest seq, which is how many
    notifications were sent; `table`: store -> the seqs it has; `told`: (tick, store) of each
    reminder in the table. All were read when the window was complete and no store changed any more.
    """

    first: int
    last: int
    anchor_ms: float
    rate: float
    ledger: Mapping[int, tuple[int, str]]
    effects: Sequence[Effect]
    begins: Sequence[Begin]
    told: Sequence[tuple[int, str]]
    counters: Mapping[str, int]
    table: Mapping[str, Sequence[int]]
    clients: Sequence[Client]
    unpublished: int = 0
    still_open: int = 0
    forced_stops: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    step: int = 1000


@dataclass(frozen=True)
class Report:
    """The counts, and in words what is wrong with them."""

    rows: Sequence[tuple[str, str]]
    problems: Sequence[str]

    @property
    def is_green(self) -> bool:
        """Whether nothing was doubled or lost."""
        return not self.problems

    def __str__(self) -> str:
        return self.shown()

    def shown(self, interrupted: bool = False) -> str:
        """The table; an `interrupted` campaign is not judged by what was under way."""
        wide = max(len(name) for name, _ in self.rows)
        lines = [f"{name:{wide}}  {value}" for name, value in self.rows]
        rule = "-" * max(map(len, lines))
        verdict = ["GREEN"] if self.is_green else [f"RED: {each}" for each in self.problems]
        if interrupted:
            verdict = ["interrupted: the newest ticks and notifications were still under way"]
        return "\n".join([rule, *lines, rule, *verdict])


def check(facts: Facts) -> Report:
    """Judge the facts."""
    window = range(facts.first, facts.last + 1, facts.step)
    problems: dict[str, list[str]] = {
        "lost ticks": _lost(facts, window),
        "doubled effects": _doubled(facts),
        "stale writes": _stale(facts),
        "standstills": [f"of {each:.0f} ms" for each in pauses(facts) if each > STANDSTILL_MS],
        "strange ticks": [
            f"tick {each}" for each in sorted({e.tick for e in facts.effects}) if each % facts.step
        ],
        "torn effects": _torn(facts),
        "gaps in the table": gaps(facts.counters, facts.table),
        "unpublished notifications": [f"{facts.unpublished} rows"] * bool(facts.unpublished),
        "stores still open": [f"{facts.still_open} stores"] * bool(facts.still_open),
        "nothing happened": _nothing(facts, window),
    }
    delivery = _delivery(facts)
    problems |= delivery
    rows = [*_tick_rows(facts, window, problems), *_note_rows(facts, delivery)]
    rows.append(("workers that did not stop in time", str(facts.forced_stops)))
    rows.append(("faults injected", f"{sum(facts.faults.values())}"))
    rows += [(f"  {kind}", str(count)) for kind, count in sorted(facts.faults.items())]
    return Report(rows, [in_words(kind, found) for kind, found in problems.items() if found])


def in_words(kind: str, found: Sequence[str]) -> str:
    """How many problems of a kind there are, and the first of them."""
    more = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    return f"{kind} ({len(found)}): {'; '.join(found[:_TOLD])}{more}"


# -- ticks -------------------------------------------------------------------------------------


def _lost(facts: Facts, window: Iterable[int]) -> list[str]:
    applied = {each.tick for each in facts.effects if each.applied}
    found = []
    for tick in window:
        attempt, state = facts.ledger.get(tick, (0, "not in the ledger"))
        if state != "succeeded":
            found.append(f"tick {tick} is {state} (attempt {attempt})")
        elif tick not in applied:
            found.append(f"tick {tick} succeeded without effect")
    return found


def _doubled(facts: Facts) -> list[str]:
    applied = Counter(each.tick for each in facts.effects if each.applied)
    written = Counter((each.tick, each.attempt) for each in facts.effects)
    found = [f"tick {tick} took effect {n} times" for tick, n in applied.items() if n > 1]
    found += [
        f"tick {tick}, attempt {attempt} was written {n} times"
        for (tick, attempt), n in written.items()
        if n > 1
    ]
    last = {tick: attempt for tick, (attempt, _) in facts.ledger.items()}
    found += [
        f"tick {each.tick}, attempt {each.attempt} is unknown to the ledger"
        for each in facts.effects
        if each.attempt > last.get(each.tick, 0)
    ]
    return found


def _stale(facts: Facts) -> list[str]:
    newest: dict[int, int] = {}
    found = []
    for each in facts.effects:
        if each.attempt < newest.get(each.tick, 0):
            found.append(
                f"tick {each.tick}: attempt {each.attempt} wrote after attempt {newest[each.tick]}"
            )
        newest[each.tick] = max(each.attempt, newest.get(each.tick, 0))
    return found


def _torn(facts: Facts) -> list[str]:
    said = Counter[int]()
    for each in facts.effects:
        said[each.tick] += each.notes
    has = Counter(tick for tick, _ in facts.told)
    found = [
        f"tick {tick} says {said[tick]} notifications, the table has {has[tick]}"
        for tick in sorted({*said, *has})
        if said[tick] != has[tick]
    ]
    twice = [pair for pair, n in Counter(facts.told).items() if n > 1]
    return found + [f"store {store} was told twice of tick {tick}" for tick, store in twice]


def gaps(counters: Mapping[str, int], table: Mapping[str, Sequence[int]]) -> list[str]:
    """Stores whose rows are not 1, 2, ... up to their counter."""
    return [
        f"store {store}: counter {counter}, {len(table.get(store, ()))} rows"
        for store, counter in counters.items()
        if sorted(table.get(store, ())) != list(range(1, counter + 1))
    ]


def _nothing(facts: Facts, window: Sequence[int]) -> list[str]:
    found = ["no tick was due"] * (not len(window))
    found += ["no notification was sent"] * (not sum(facts.counters.values()))
    return found + ["no client listened"] * (not facts.clients)


# -- notifications -----------------------------------------------------------------------------


def _delivery(facts: Facts) -> dict[str, list[str]]:
    lost, repeated, disorder, refused = [], [], [], []
    for client in facts.clients:
        for store, seqs in client.received.items():
            until = facts.counters.get(store, 0)
            missing = sorted({*range(1, until + 1)} - {*seqs})
            lost += [f"{client.name} lacks {store}:{seq}" for seq in missing]
            again = Counter(seqs)
            repeated += [
                f"{client.name} got {store}:{s} {n} times" for s, n in again.items() if n > 1
            ]
            if list(seqs) != sorted(seqs):
                disorder.append(f"{client.name} got {store} out of order")
        refused += [f"{client.name}, {client.refused} times"] * bool(client.refused)
    return {
        "lost notifications": lost, "repeated notifications": repeated,
        "disordered notifications": disorder, "history refused": refused,
    }  # fmt: skip


def _note_rows(facts: Facts, found: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    expected = sum(
        facts.counters.get(store, 0) for each in facts.clients for store in each.received
    )
    received = sum(len(seqs) for each in facts.clients for seqs in each.received.values())
    return [
        ("notifications sent", f"{sum(facts.counters.values())}, {expected} to clients"),
        ("notifications received", str(received)),
        ("notifications lost", str(len(found["lost notifications"]))),
        ("notifications repeated", str(len(found["repeated notifications"]))),
    ]


# -- the table ---------------------------------------------------------------------------------


def _tick_rows(
    facts: Facts, window: Sequence[int], problems: Mapping[str, Sequence[str]]
) -> list[tuple[str, str]]:
    runs = sum(state == "succeeded" for _, state in facts.ledger.values())
    late = lateness(facts)
    over = sum(each > LATE_MS for each in late)
    takes = takeovers(facts.begins)
    return [
        ("ticks in the window", str(len(window))),
        ("runs succeeded", f"{runs} (before, in and after the window)"),
        ("doubled effects", str(len(problems["doubled effects"]))),
        ("stale writes", str(len(problems["stale writes"]))),
        ("lost ticks", str(len(problems["lost ticks"]))),
        ("late ticks (> 1 s, real time)", f"{over}; {spread(late)}"),
        ("longest pause between ticks", f"{max(pauses(facts), default=0):.0f} ms"),
        ("takeovers", f"{len(takes)}; {spread(takes)}"),
    ]


def lateness(facts: Facts) -> list[float]:
    """How late each tick of the window took effect, in real ms."""
    return [
        each.at_ms - facts.anchor_ms - (each.tick - facts.first) / facts.rate
        for each in facts.effects
        if each.applied and facts.first <= each.tick <= facts.last
    ]


def pauses(facts: Facts) -> list[float]:
    """The real ms between one tick's effect and the next one's, whichever ticks these are."""
    return [after.at_ms - before.at_ms for before, after in pairwise(facts.effects)]


def takeovers(begins: Iterable[Begin]) -> list[float]:
    """The real ms from the start of an attempt to that of the next, where another worker began
    it."""
    found, before = [], dict[int, Begin]()
    for each in sorted(begins, key=lambda begin: (begin.tick, begin.attempt, begin.at_ms)):
        last = before.get(each.tick)
        if last is not None and last.worker != each.worker and last.attempt < each.attempt:
            found.append(each.at_ms - last.at_ms)
        before[each.tick] = each
    return found


def spread(values: Sequence[float]) -> str:
    """The median, the 99th percentile and the largest of some times in ms."""
    if not values:
        return "-"
    ordered = sorted(values)
    half, most = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    return f"p50 {half:.0f}, p99 {most:.0f}, max {ordered[-1]:.0f} ms"
