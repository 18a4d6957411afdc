"""What was measured, as a table, and what it is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.common import Row, table, thousands, verdict
from benchmarks.common_svg import Chart, svg
from benchmarks.push.measure import Pass, Resumed, middle, ratio

PRODUCT, PEER, FLOOR = "solocron", "aiohttp", "write(2)"
_SINGLES, _BURSTS, _PICOWS, _MEMORY = 2.0, 5.0, 0.9, 1.25


@dataclass
class Findings:
    """What was measured so far: passes by burst and way, those in singles with
    `fewer` clients, bytes per idle connection, the return of
    all clients, and passes without and with stalled clients."""

    clients: int
    idle: int
    passes: dict[int, dict[str, list[Pass]]] = field(default_factory=dict)
    fewer: tuple[int, dict[str, list[Pass]]] = (0, {})
    memory: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, Resumed] = field(default_factory=dict)
    stalled: dict[str, list[Pass]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        fewer, singles = self.fewer
        return {
            "clients": self.clients, "idle": self.idle, "fewer": fewer,
            "passes": {burst: _plain(ways) for burst, ways in self.passes.items()},
            "passes_of_fewer": _plain(singles), "bytes_per_connection": self.memory,
            "resumed": {way: asdict(each) for way, each in self.resumed.items()},
            "stalled": _plain(self.stalled),
        }  # fmt: skip

    def chart(self) -> str:
        """What a delivery costs the server, against the number of clients."""
        fewer, singles = self.fewer
        sizes = [(fewer, singles), (self.clients, self.passes.get(1, {}))]
        lines = {
            way: [(clients, 1e6 / middle(ways[way], "per_cpu")) for clients, ways in sizes]
            for way in singles
        }
        return svg(Chart("A delivery, in singles", "clients", "us of the server's CPU", lines))

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


def _plain(ways: Mapping[str, Sequence[Pass]]) -> dict[str, list[dict[str, float]]]:
    return {way: [asdict(each) for each in passes] for way, passes in ways.items()}
