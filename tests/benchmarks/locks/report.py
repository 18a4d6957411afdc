"""What was measured, as a table, a document and a chart, and what it is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.common import Row, ratio, table, thousands, verdict
from benchmarks.common_svg import Chart, svg
from benchmarks.locks.measure import FLOOR, PEER, PRODUCT, Turn, plain

_AIMS = {(1, PEER): 1.2, (64, PEER): 6.0, (64, "pottery"): 1.0, (64, "aioredlock"): 1.0,
         (64, "coredis"): 1.0}  # fmt: skip
_COUNTS = {"a loser": 1, "a loser in the holder's process": 0}


@dataclass
class Findings:
    """What was measured so far: turns by tasks and way, scripts by what is done, and why a way is
    missing."""

    turns: Mapping[int, Mapping[str, Sequence[Turn]]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def table(self, title: str) -> Table:
        """To be printed."""
        ways = next(iter(self.turns.values()), {PRODUCT: []})
        columns = [PRODUCT, *([FLOOR] if FLOOR in ways else []),
                   *(name for name in ways if name not in (PRODUCT, FLOOR))]  # fmt: skip
        rows = [row for tasks, found in self.turns.items() for row in _rows(tasks, found)]
        return table(
            title, columns, [*rows, *_counted(self.counts), *_not_there(self.missing)],
            "solocron to others",
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "rounds": plain(self.turns), "scripts": dict(self.counts),
            "missing": dict(self.missing),
            "cycles_per_s": {tasks: _middles(found, _rate) for tasks, found in self.turns.items()},
            "ratios": {tasks: _ratios(found) for tasks, found in self.turns.items()},
        }  # fmt: skip

    def chart(self) -> str:
        """What a cycle costs, against the number of tasks."""
        names = next(iter(self.turns.values()), {})
        lines = {
            name: [(tasks, 1e6 / median(map(_rate, found[name])))
                   for tasks, found in self.turns.items()]
            for name in names
        }  # fmt: skip
        return svg(Chart("A cycle of acquire and release", "tasks", "us per cycle", lines))


def _rate(turn: Turn) -> float:
    return turn.rate


def _middles(
    found: Mapping[str, Sequence[Turn]], figure: Callable[[Turn], float]
) -> dict[str, float]:
    return {name: median(map(figure, turns)) for name, turns in found.items()}


def _ratios(found: Mapping[str, Sequence[Turn]]) -> dict[str, float]:
    mine = [each.rate for each in found[PRODUCT]]
    return {
        name: ratio(mine, [each.rate for each in turns])
        for name, turns in found.items() if name != PRODUCT
    }  # fmt: skip


def _rows(tasks: int, found: Mapping[str, Sequence[Turn]]) -> list[Row]:
    said = [
        verdict(name, value, _AIMS[tasks, name]) if (tasks, name) in _AIMS
        else f"{value:.2f} x {name}"
        for name, value in _ratios(found).items()
    ]  # fmt: skip
    rates = {name: thousands(each) for name, each in _middles(found, _rate).items()}
    measured = {name: turns for name, turns in found.items() if name != FLOOR}
    costs = _middles(measured, lambda turn: turn.cpu_us or 0)
    some = "1 task" if tasks == 1 else f"{tasks} tasks"
    return [
        Row(f"{some}: cycles/s", rates, "\n".join(said)),
        Row(f"{some}: us of CPU a cycle", {name: f"{each:.0f}" for name, each in costs.items()}),
    ]


def _counted(counts: Mapping[str, int]) -> list[Row]:
    return [
        Row(f"commands: {name}", {PRODUCT: str(found)}, _judged(found, _COUNTS.get(name)))
        for name, found in counts.items()
    ]  # fmt: skip


def _judged(found: int, aim: int | None) -> str:
    return "" if aim is None else f"aim {aim}: " + ("met" if found == aim else "MISSED")


def _not_there(missing: Mapping[str, str]) -> list[Row]:
    return [Row(f"{name}: not measured", {}, why) for name, why in missing.items()]
