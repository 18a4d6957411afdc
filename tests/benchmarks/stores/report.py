"""What was measured, as a table, a document and a chart, and what it is to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.common import Row, table, verdict
from benchmarks.common_svg import Chart, svg
from benchmarks.stores.measure import Size, Turn, summary

_PLAIN, _GROWN_MB, _LAG_MS, _AGAIN_S = 1.3, 150.0, 20.0, 1.0
_RUN, _STATEMENTS = "solocron", "plain statements"


@dataclass
class Findings:
    """What was measured so far."""

    turns: dict[Size, list[Turn]] = field(default_factory=dict)

    def table(self) -> Table:
        """To be printed."""
        rows = [row for size, turns in self.turns.items() for row in _rows(size, turns)]
        title = (
            "Closing the stores whose hours have ended, half of them. The plain statements write "
            "the same rows, but find out nothing, publish nothing and keep no batches"
        )
        return table(title, [_RUN, _STATEMENTS], rows, "aims")

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "figures": {size.name: summary(turns) for size, turns in self.turns.items()},
            "turns": {size.name: list(map(asdict, turns)) for size, turns in self.turns.items()},
        }

    def chart(self) -> str:
        """What a store that is due costs, against the number of stores."""
        lines: dict[str, list[tuple[float, float]]] = {}
        for size, turns in self.turns.items():
            found, due = summary(turns), size.stores / 2
            times = {_RUN: found["run_s"], f"{_RUN}, published": found["told_s"],
                     _STATEMENTS: found["plain_s"]}  # fmt: skip
            for name, seconds in times.items():
                line = lines.setdefault(f"{name}, {size.kind[:2]} {size.hours:,} h", [])
                line.append((size.stores, 1e6 * max(seconds, 0.001) / due))
        return svg(Chart("A store that is closed", "stores", "us per store", lines))


def _rows(size: Size, turns: list[Turn]) -> list[Row]:
    found = summary(turns)

    def row(name: str, shown: str, aim: str = "", plain: str = "") -> Row:
        return Row(f"{size.name}: {name}", {_RUN: shown, _STATEMENTS: plain}, aim)

    grown = found["grown"] / 1e6
    return [
        row(f"s of the run, of {len(turns)}", f"{found['run_s']:.2f}",
            verdict(_STATEMENTS, found["run_to_plain"], _PLAIN, most=True),
            f"{found['plain_s']:.2f}"),
        row("s until all was published", f"{found['told_s']:.2f}",
            f"{found['told_to_plain']:.2f} x {_STATEMENTS}", f"{found['noted_s']:.2f}"),
        row("s of CPU of the server", f"{found['cpu_s']:.2f}"),
        row("MB over idle", f"{grown:.0f}", verdict("", grown, _GROWN_MB, most=True, unit="MB")),
        row("loop lag, p99 (most) ms", f"{found['lag_p99_ms']:.1f} ({found['lag_max_ms']:.1f})",
            verdict("p99", found["lag_p99_ms"], _LAG_MS, most=True, unit="ms")),
        row("ms from closed to heard, p50 (p99)",
            f"{found['heard_p50_ms']:.0f} ({found['heard_p99_ms']:.0f})"),
        row("s of a run with nothing due", f"{found['again_s']:.2f}",
            verdict("", found["again_s"], _AGAIN_S, most=True, unit="s")),
    ]  # fmt: skip
