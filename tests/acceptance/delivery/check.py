"""What the trial proves, judged from the table and from what each client was sent. Pure.

Each of these turns it red:

- *lost*: a client has not come to the head of what it watches, or was sent a seq further ahead
  than the next one.
- *repeated*: a client was sent what it had said, when it connected, that it has.
- *altered*: what it took is not, byte for byte and in order, what the table has.
- *strange*: what it does not watch, or beyond the table's head; a stream whose `id` is not its
  client's position; a frame or a close that says the client did wrong.
- *refused*: it was told that the history does not reach back to its last seq.
- *gap in the table*: the seqs of a store are not 1, 2, ... up to its counter.
- *unpublished*: a row that no relay has published although all has been well for long.
- *error logged*: a server took a fault for an error of its own.
- a trial in which nothing was written, or in which a client never connected, proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from faults.campaign.check import Report, gaps, in_words, spread

_BY_KIND = {
    "lost notifications": ("gaps",), "repeated notifications": ("repeats",),
    "history refused": ("refused",), "strange answers": ("strange", "positions", "errors"),
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """All that was written down.

    `heads` of stores and of EVERY are their newest seqs; `table`, the seqs, and `sums`, the
    checksums, are what the rows say; `clients` are `Record.shown` of each, with its `name`.
    `errors` are lines of the servers' logs. Times in s: `written_s` from the first notification to
    the last one, `settled_s` from then until all clients had everything (None: they never had).
    """

    heads: Mapping[str, int]
    table: Mapping[str, Sequence[int]]
    sums: Mapping[str, int]
    clients: Sequence[Mapping[str, Any]]
    faults: Mapping[str, int]
    unpublished: int
    errors: Sequence[str]
    written_s: float
    settled_s: float | None


def check(facts: Facts) -> Report:
    """Judge the facts."""
    problems: dict[str, list[str]] = {
        kind: [
            f"{client['name']}: {fault}"
            for client in facts.clients
            for fault in client["faults"]
            if fault.partition(":")[0] in names
        ]
        for kind, names in _BY_KIND.items()
    }
    problems["lost notifications"] += _behind(facts)
    problems["altered notifications"] = _altered(facts)
    problems["gaps in the table"] = gaps(facts.heads, facts.table)
    problems["unpublished notifications"] = [f"{facts.unpublished} rows"] * bool(facts.unpublished)
    problems["errors logged by servers"] = list(facts.errors)
    problems["nothing happened"] = _nothing(facts)
    told = [in_words(kind, found) for kind, found in problems.items() if found]
    return Report(_rows(facts), told)


def _behind(facts: Facts) -> list[str]:
    return [
        f"{client['name']} has {topic} up to {seq} of {facts.heads.get(topic, 0)}"
        for client in facts.clients
        for topic, seq in client["last"].items()
        if seq != facts.heads.get(topic, 0)
    ]


def _altered(facts: Facts) -> list[str]:
    """Those who took as many as there are, but not those."""
    return [
        f"{client['name']}, {topic}"
        for client in facts.clients
        for topic, seq in client["last"].items()
        if seq == facts.heads.get(topic, 0)
        and client["sums"][topic] != facts.sums.get(topic, 0)
        and not client["counts"].get("gaps")
    ]


def _nothing(facts: Facts) -> list[str]:
    found = ["no notification was written"] * (not sum(facts.heads.values()))
    found += ["no client listened"] * (not facts.clients)
    return found + [
        f"{client['name']} never connected"
        for client in facts.clients
        if not client["counts"].get("connections")
    ]


def _rows(facts: Facts) -> list[tuple[str, str]]:
    counts = Counter[str]()
    for client in facts.clients:
        counts.update(client["counts"])
    rows = sum(map(len, facts.table.values())) // 2  # each is in its store and in the feed
    catch_ups = [each * 1000 for client in facts.clients for each in client["catch_ups_s"]]
    settled = "never" if facts.settled_s is None else f"{facts.settled_s:.1f} s"
    closes = [f"{counts[kind]} {kind}" for kind in sorted(counts) if kind.startswith("closed")]
    return [
        ("notifications written", f"{rows} in {facts.written_s:.0f} s"),
        ("clients", str(len(facts.clients))),
        ("delivered to them", str(counts["taken"])),
        ("faults injected", str(sum(facts.faults.values()))),
        *((f"  {kind}", str(count)) for kind, count in sorted(facts.faults.items())),
        ("reconnects", f"{counts['connections'] - len(facts.clients)}; {', '.join(closes)}"),
        ("resumed from a last seq", str(counts["resumes"])),
        ("from link lost to caught up", spread(catch_ups)),
        ("all had everything after the end", settled),
        ("notifications lost", str(_lost(facts, counts))),
        ("notifications repeated", str(counts["repeats"])),
    ]


def _lost(facts: Facts, counts: Mapping[str, int]) -> int:
    return counts["lost"] + sum(
        max(0, facts.heads.get(topic, 0) - seq)
        for client in facts.clients
        for topic, seq in client["last"].items()
    )
