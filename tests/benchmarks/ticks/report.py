"""What was measured, as a table, a document and a chart, and what it is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.common import Row, table, verdict
from benchmarks.common_svg import Chart, svg
from benchmarks.ticks import counts
from benchmarks.ticks.counts import Cost
from benchmarks.ticks.measure import PRODUCT, Found, Size, plain, summary
from benchmarks.ticks.ways import WAYS

_P99_MS, _P99_JOBS = 5.0, 100
_FLAT = 1.1

Figures = Mapping[str, Mapping[str, Any]]


@dataclass
class Findings:
    """What was measured so far: turns by size and way, of jobs that come due and of such that do
    not, costs by workers, and why something is missing."""

    turns: dict[Size, Found] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[Size, Figures]:
        """The figures of each size and way."""
        return {size: summary(found, size.due) for size, found in self.turns.items()}

    def table(self) -> Table:
        """To be printed."""
        rows: list[Row] = []
        for size, figures in self.figures().items():
            rows += _rows(size, figures)
        rows += _cost_rows(self.costs)
        rows += [Row(f"{name}: not measured", {}, why) for name, why in self.missing.items()]
        return table("Jobs of one process, and what a tick costs", list(WAYS), rows, "solocron")

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "figures": {size.name: figures for size, figures in self.figures().items()},
            "turns": {size.name: plain(found) for size, found in self.turns.items()},
            "per_tick": counts.plain(self.costs), "missing": dict(self.missing),
        }  # fmt: skip

    def chart(self) -> str:
        """Lateness and start against jobs, commands against workers."""
        due = {size: each for size, each in self.figures().items() if size.due}

        def lines(figure: str) -> dict[str, list[tuple[float, float]]]:
            return {
                way: [(size.plan.jobs, max(each[way][figure], 0.001))
                      for size, each in due.items() if figure in each.get(way, {})]
                for way in WAYS
            }  # fmt: skip

        per_worker: dict[str, list[tuple[float, float]]] = {
            "scripts of Redis": [(each.workers, each.scripts) for each in self.costs],
            "statements": [(each.workers, each.statements) for each in self.costs],
        }
        return svg(
            Chart("How late a body begins, p99", "jobs", "ms", lines("p99_ms")),
            Chart("Until all jobs are armed", "jobs", "s", lines("start_s")),
            Chart("Commands of a tick", "workers", "commands", per_worker),
        )


def _rows(size: Size, figures: Figures) -> list[Row]:
    def row(name: str, figure: str, show: Callable[[float], str], aim: str = "") -> Row:
        shown = {way: show(each[figure]) for way, each in figures.items() if figure in each}
        return Row(f"{size.name}: {name}", shown, aim)

    memory = row("MB of memory", "resident", lambda each: f"{each / 1e6:.0f}")
    cpu = row("% of a core", "cpu", lambda each: f"{100 * each:.1f}")
    start = row("s until armed", "start_s", "{:.2f}".format)
    if not size.due:
        return [cpu, memory, start]
    mine = figures[PRODUCT].get("p99_ms")
    aim = ""
    if mine is not None and size.plan.jobs == _P99_JOBS:
        aim = verdict("p99", mine, _P99_MS, most=True, unit="ms")
    return [
        row("ms late, p50", "p50_ms", "{:.2f}".format),
        row("ms late, p99", "p99_ms", "{:.2f}".format, aim),
        row("ms late, most", "max_ms", "{:.2f}".format),
        row("% of the ticks that were due", "run", lambda each: f"{100 * each:.0f}"), cpu, start,
    ]  # fmt: skip


def _cost_rows(costs: Sequence[Cost]) -> list[Row]:
    rows = []
    for each in costs:
        name = f"a tick on {each.workers} worker{'s' if each.workers > 1 else ''}"
        aim = ""
        if each.scripts_per_loser is not None:
            aim = verdict("for each loser", each.scripts_per_loser, 1.0, most=True, unit="commands")
        rows.append(Row(f"{name}: scripts of Redis", {PRODUCT: f"{each.scripts:.2f}"}, aim))
        growth = each.statements / costs[0].statements
        aim = verdict("the first", growth, _FLAT, most=True) if each is not costs[0] else ""
        if each.statements_per_loser is not None:
            aim += f"\n{each.statements_per_loser:.2f} for each loser, aim 0"
        rows.append(Row(f"{name}: statements", {PRODUCT: f"{each.statements:.2f}"}, aim))
    return rows
