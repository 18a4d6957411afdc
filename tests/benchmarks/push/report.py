"""What was measured, as a table, and what it is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.table import Table

from benchmarks.common import Row, table, thousands, verdict
from benchmarks.push.measure import Pass, Resumed, middle, ratio

PRODUCT, PEER, FLOOR = "solocron", "aiohttp", "write(2)"
_SINGLES, _BURSTS, _PICOWS, _MEMORY = 2.0, 5.0, 0.9, 1.25


@dataclass
class Findings:
    """What was measured so far: passes by burst and way, bytes per idle connection, the return of
    all clients, and passes without and with stalled clients."""

    clients: int
    idle: int
    passes: dict[int, dict[str, list[Pass]]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, Resumed] = field(default_factory=dict)
    stalled: dict[str, list[Pass]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The rows of what there is."""
        found: list[Row] = []
        for burst, ways in self.passes.items():
            found += _push_rows("singles" if burst == 1 else f"bursts of {burst}", burst, ways)
        if PRODUCT in self.memory:
            found.append(_memory_row(self.idle, self.memory))
        if PRODUCT in self.resumed:
            found += _resume_rows(self.idle, self.resumed)
        if self.stalled:
            found.append(_stalled_row(self.stalled))
        return found

    def table(self) -> Table:
        """The rows, to be printed."""
        ways = list(next(iter(self.passes.values()), {PRODUCT: [], PEER: []}))
        return table(
            f"{self.clients:,} clients, messages of 200 bytes, every server on uvloop",
            list(ways), self.rows(), "solocron to others",
        )  # fmt: skip


def _push_rows(title: str, burst: int, ways: Mapping[str, Sequence[Pass]]) -> list[Row]:
    mine = ways[PRODUCT]
    least = _SINGLES if burst == 1 else _BURSTS

    def row(name: str, figure: str, show: Callable[[float], str], aim: str = "") -> Row:
        figures = {way: show(middle(passes, figure)) for way, passes in ways.items()}
        return Row(f"{title}: {name}", figures, aim)

    def aims(figure: str) -> str:
        lines = [verdict(PEER, ratio(mine, ways[PEER], figure), least)]
        lines.append(verdict("picows", ratio(mine, ways["picows"], figure), _PICOWS))
        if burst == 1:  # of which nothing that writes to each client comes beyond 1
            lines.append(f"{ratio(mine, ways[FLOOR], figure):.2f} x {FLOOR}")
        return "\n".join(lines)

    return [
        row("deliveries/s", "rate", thousands, aims("rate")),
        row("per s of server CPU", "per_cpu", thousands, aims("per_cpu")),
        row("p99 ms", "p99_ms", "{:.1f}".format),
    ]


def _memory_row(idle: int, memory: Mapping[str, float]) -> Row:
    aim = verdict(PEER, memory[PRODUCT] / memory[PEER], _MEMORY, most=True)
    figures = {way: thousands(each) for way, each in memory.items()}
    return Row(f"bytes per idle connection of {idle:,}", figures, aim)


def _resume_rows(clients: int, resumed: Mapping[str, Resumed]) -> list[Row]:
    walls = {way: f"{each.wall_s:.1f}" for way, each in resumed.items()}
    rates = {way: thousands(clients / each.wall_s) for way, each in resumed.items()}
    slower = resumed[PRODUCT].wall_s / resumed[PEER].wall_s
    return [
        Row(f"{clients:,} clients resume: s to the last", walls, f"{slower:.1f} x {PEER}"),
        Row(f"{clients:,} clients resume: connections/s", rates),
    ]


def _stalled_row(stalled: Mapping[str, Sequence[Pass]]) -> Row:
    without, beside = stalled["none"], stalled["some"]
    times = {PRODUCT: f"{middle(beside, 'p99_ms'):.1f} ({middle(without, 'p99_ms'):.1f})"}
    pairs = zip(beside, without, strict=True)
    aim = f"{median(a.p99_ms / b.p99_ms for a, b in pairs):.2f} x none stalled"
    return Row("p99 ms beside 1 % stalled (none stalled)", times, aim)
