"""What is measured of each way: how late bodies begin, and what waiting for them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.common import BenchError, Say, turns
from benchmarks.common_process import ours, running, theirs
from benchmarks.common_world import World
from benchmarks.ticks.plan import Plan
from benchmarks.ticks.ways import WAYS

PRODUCT = "solocron"
_SETTLED_S = 1.2  # after the start, until which ticks are not counted


@dataclass(frozen=True)
class Turn:
    """A process with jobs: `start_s` until they were all armed, how many ms after its time each
    body began, the share of its time that it computed, and its bytes of memory."""

    start_s: float
    late_ms: Sequence[float]
    cpu: float
    resident: int


@dataclass(frozen=True)
class Size:
    """A plan, and for how many s it is watched."""

    plan: Plan
    seconds: float

    @property
    def name(self) -> str:
        """What it is, in words."""
        jobs = f"{self.plan.jobs:,} job{'s' if self.plan.jobs > 1 else ''}"
        if not self.plan.period:
            return f"{jobs}, none due"
        how = "all at once" if self.plan.together else "each"
        return f"{jobs}, {how} every {self.plan.period} s"

    @property
    def due(self) -> float:
        """How many ticks come in that time."""
        return self.plan.jobs / self.plan.period * self.seconds if self.plan.period else 0


Found = dict[str, list[Turn]]


class Measure:
    """Turns of each way in `world`; why a way could not be measured goes to `missing`."""

    def __init__(self, world: World, missing: dict[str, str], say: Say) -> None:
        self._world = world
        self._missing = missing
        self._say = say

    def rounds(self, size: Size, count: int) -> Found:
        """Rounds in which each way has its turn."""
        found: Found = {name: [] for name in WAYS}
        for number in range(count):
            for name in turns(WAYS, number):
                if name in self._missing or f"{name}, {size.name}" in self._missing:
                    continue
                self._say(f"round {number + 1} of {count}: {size.name}: {name}")
                try:
                    found[name].append(self.turn(name, size))
                except BenchError as error:
                    self._failed(name, size, error)
        return {name: each for name, each in found.items() if each}

    def _failed(self, name: str, size: Size, error: BenchError) -> None:
        if name == PRODUCT:
            raise BenchError(f"{name}: {error}")
        is_there = "not installed" not in str(error)
        self._missing[f"{name}, {size.name}" if is_there else name] = str(error)

    def turn(self, name: str, size: Size) -> Turn:
        """One process, from its start to its end. Raises BenchError."""
        plan = size.plan
        arguments = (name, str(plan.jobs), str(plan.period), str(int(plan.together)))
        module = "benchmarks.ticks.worker"
        is_ours = name == PRODUCT
        command, paths = (
            ours(module, *arguments) if is_ours else theirs("ticks", module, *arguments)
        )
        url = self._world.database(*(() if is_ours else (None,)))
        variables = {**self._world.environment(url), **paths}
        with running(name, command, variables) as process:
            if "error" in process.said:
                raise BenchError(process.said["error"])
            process.ask("window", _SETTLED_S)
            seen = process.ask("window", size.seconds)
            return Turn(process.said["start_s"], seen["late_ms"], seen["cpu"], seen["resident"])


def summary(found: Found, due: float) -> dict[str, dict[str, Any]]:
    """The figures of each way: lateness over all its turns, medians of the rest."""
    return {name: _of(each, due) for name, each in found.items()}


def _of(turns: Sequence[Turn], due: float) -> dict[str, Any]:
    late = sorted(ms for each in turns for ms in each.late_ms)
    figures: dict[str, Any] = {
        "start_s": median(each.start_s for each in turns),
        "cpu": median(each.cpu for each in turns),
        "resident": median(each.resident for each in turns),
    }
    if due and late:
        figures |= {
            "p50_ms": late[len(late) // 2], "p99_ms": late[len(late) * 99 // 100],
            "max_ms": late[-1], "run": len(late) / (due * len(turns)),
        }  # fmt: skip
    return figures


def plain(found: Found) -> dict[str, list[dict[str, Any]]]:
    """The same as JSON has it."""
    return {name: [asdict(each) for each in turns] for name, turns in found.items()}
