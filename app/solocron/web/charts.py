"""The dashboard's small charts, as numbers that a template draws as SVG. Pure.

Nothing is told by colour alone: of a bar, its height tells how long the run took, and its shape how
it ended; each chart has its meaning in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEIGHT = 32
_STEP, _LEAST = 9, 5
_LONGEST_MS = 600_000
_LATEST_MS = 60_000


@dataclass(frozen=True)
class Bar:
    """A bar on the ground line: its left edge, its height, how it looks and what it means."""

    x: int
    height: float
    state: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Bars on a ground of this width; `text` says in words what they show."""

    width: int
    bars: Sequence[Bar]
    text: str


@dataclass(frozen=True)
class Day:
    """How a job's scheduled runs went, hour by hour."""

    job: str
    success: Chart
    lateness: Chart
    runs: int
    failed: int
    late_ms: int


def timeline(runs: Sequence[Mapping[str, Any]], room: int) -> Chart:
    """The newest runs (given newest first), the last one at the right of `room` places."""
    bars = [
        Bar((room - 1 - place) * _STEP, _tall(run), run["state"], run_text(run))
        for place, run in enumerate(runs[:room])
    ]  # fmt: skip
    counts = {state: sum(bar.state == state for bar in bars)
              for state in ("succeeded", "failed", "running")}  # fmt: skip
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return Chart(room * _STEP, bars[::-1], f"Last runs: {said}" if said else "No run yet")


def _tall(run: Mapping[str, Any]) -> float:
    """How high a run stands; one that has not ended, half-way."""
    took_ms = run["duration_ms"]
    return HEIGHT / 2 if took_ms is None else _height(took_ms, _LONGEST_MS)


def run_text(run: Mapping[str, Any]) -> str:
    """A run in a few words."""
    took = f" in {span(run['duration_ms'])}" if run["duration_ms"] is not None else ""
    how = ", by hand" if run["origin"] == "manual" else ""
    late = f", began {span(run['late_ms'])} late" if run["late_ms"] else ""
    return f"{run['state']}{took}{how}{late}"


def days(
    jobs: Sequence[str], hours: Sequence[Mapping[str, Any]], until: int, span_ms: int, spans: int
) -> list[Day]:
    """A day for each job, of the hours that had runs: `spans` of `span_ms` each, the last of them
    ending at `until` (UTC epoch ms)."""
    first = until - spans * span_ms
    of_job: dict[str, list[tuple[int, Mapping[str, Any]]]] = {job: [] for job in jobs}
    for hour in hours:
        place = (hour["since"] - first) // span_ms
        if hour["job"] in of_job and 0 <= place < spans:
            of_job[hour["job"]].append((place * _STEP, hour))
    return [_day(job, found, spans * _STEP) for job, found in of_job.items()]


def _day(job: str, hours: Sequence[tuple[int, Mapping[str, Any]]], width: int) -> Day:
    runs = sum(hour["succeeded"] + hour["failed"] for _, hour in hours)
    failed = sum(hour["failed"] for _, hour in hours)
    late_ms = max((hour["late_ms"] for _, hour in hours), default=0)
    most = max((hour["succeeded"] + hour["failed"] for _, hour in hours), default=1)
    success = [bar for x, hour in hours for bar in _success(x, hour, max(most, 1))]
    lateness = [
        Bar(x, _height(hour["late_ms"], _LATEST_MS), "late", f"{span(hour['late_ms'])} late")
        for x, hour in hours
    ]
    return Day(
        job, Chart(width, success, f"{runs - failed} of {runs} runs succeeded in 24 hours"),
        Chart(width, lateness, f"At most {span(late_ms)} late in 24 hours"), runs, failed, late_ms,
    )  # fmt: skip


def _success(x: int, hour: Mapping[str, Any], most: int) -> list[Bar]:
    """An hour's runs: those that succeeded stand before all of them, whose top has a cross."""
    good, failed = hour["succeeded"], hour["failed"]
    text = f"{good} succeeded, {failed} failed"
    bars = [("failed", good + failed)] if failed else []
    bars += [("succeeded", good)] if good else []
    return [Bar(x, max(_LEAST, round(HEIGHT * count / most, 1)), state, text)
            for state, count in bars]  # fmt: skip


def _height(ms: float, most_ms: int) -> float:
    """On a scale of logarithms: a second and ten minutes are both to be seen."""
    share = math.log1p(max(0, min(ms, most_ms))) / math.log1p(most_ms)
    return round(_LEAST + (HEIGHT - _LEAST) * share, 1)


def span(ms: float | None) -> str:
    """A span of time, short."""
    if ms is None:
        return ""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes = ms / 60_000
    if minutes < 60:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"
