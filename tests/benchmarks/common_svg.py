"""Charts of cost against size, as SVG: lines on axes of logarithms. Pure.

No line is told by colour alone: each has its own dashes and its name at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 170, 50, 60
_COLOURS = ("#0b6e4f", "#333333", "#b3261e", "#1f5fa8", "#8a5a00", "#6b2fa0", "#00707a", "#a02f6b")
_DASHES = ("", "2 3", "8 3", "8 3 2 3", "4 2", "12 4", "1 2", "6 2 1 2")
_LABEL_STEP = 14


@dataclass(frozen=True)
class Chart:
    """`lines` by name; each is points of a size and a cost, both above 0."""

    title: str
    size: str
    cost: str
    lines: Mapping[str, Points]


def svg(*charts: Chart) -> str:
    """The charts, below each other."""
    height = _HEIGHT * len(charts)
    drawn = "\n".join(_drawn(chart, number * _HEIGHT) for number, chart in enumerate(charts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n{drawn}\n</svg>\n'
    )


class _Axis:
    """Where a value is drawn, on a scale of logarithms from `start` to `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low / 2, high * 2
        self._low, self._span = math.log10(low), math.log10(high / low)
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / self._span
        return round(self._start + share * self._length, 1)

    def marks(self) -> list[float]:
        """Round values on it: 1, 2 and 5 of each power of ten, or the powers alone."""
        powers = range(math.floor(self._low), math.ceil(self._low + self._span) + 1)
        steps = (1, 2, 5) if self._span < 3 else (1,)
        found = [step * 10.0**power for power in powers for step in steps]
        inside = (self._low - 1e-9, self._low + self._span + 1e-9)
        return [each for each in found if inside[0] <= math.log10(each) <= inside[1]]


def _drawn(chart: Chart, down: int) -> str:
    points = [each for line in chart.lines.values() for each in line]
    parts = [_text(_LEFT, 24, chart.title, "start", bold=True)]
    if points:
        across = _Axis([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
        up = _Axis([y for _, y in points], _HEIGHT - _BOTTOM, _TOP)
        parts += _grid(chart, across, up, sorted({x for x, _ in points}))
        parts += _lines(chart.lines, across, up)
    return f'<g transform="translate(0 {down})">\n' + "\n".join(parts) + "\n</g>"


def _grid(chart: Chart, across: _Axis, up: _Axis, sizes: Sequence[float]) -> list[str]:
    floor, end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [_stroke([(_LEFT, floor), (end, floor)], "#333333")]
    for value in up.marks():
        parts.append(_stroke([(_LEFT, up(value)), (end, up(value))], "#dddddd"))
        parts.append(_text(_LEFT - 8, up(value) + 4, number(value), "end"))
    parts += [_text(across(size), floor + 18, number(size), "middle") for size in sizes]
    parts.append(_text((_LEFT + end) / 2, floor + 40, chart.size, "middle"))
    return [*parts, _text(_LEFT, 42, chart.cost, "start")]


def _lines(lines: Mapping[str, Points], across: _Axis, up: _Axis) -> list[str]:
    parts, ends = [], []
    for place, (name, line) in enumerate(lines.items()):
        if not line:
            continue
        colour = _COLOURS[place % len(_COLOURS)]
        drawn = [(across(x), up(y)) for x, y in line]
        parts.append(_stroke(drawn, colour, _DASHES[place % len(_DASHES)], 2))
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in drawn]
        ends.append((drawn[-1], name, colour))
    below = 0.0
    for (x, y), name, colour in sorted(ends, key=lambda end: end[0][1]):
        below = max(y + 4, below + _LABEL_STEP)  # names do not lie on each other
        parts.append(_text(x + 10, below, name, "start", colour))
    return parts


def _stroke(points: Points, colour: str, dashes: str = "", width: float = 1) -> str:
    where = " ".join(f"{x:g},{y:g}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<polyline points="{where}" fill="none" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def _text(
    x: float, y: float, text: str, anchor: str, colour: str = "#333333", *, bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{escape(text)}</text>"
    )


def number(value: float) -> str:
    """A number as an axis shows it."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
