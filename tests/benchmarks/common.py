"""What every benchmark has in common: its errors and numbers, its table, what it says on the way,
and what it leaves behind: a JSON document, and a chart."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

RESULTS = Path("build/benchmarks")
_PIPE_WIDTH = 170
_VERSIONS = ("redis", "hiredis", "uvloop", "aiohttp", "SQLAlchemy", "asyncpg")

Say = Callable[[str], None]


class BenchError(Exception):
    """Something could not be measured, or did not do what was asked of it."""


@dataclass(frozen=True)
class Row:
    """A figure of each column that has one; `aim` is what it is to be and whether it is."""

    name: str
    figures: Mapping[str, str]
    aim: str = ""


def count(text: str) -> int:
    """A number on the command line."""
    if not (text.isdecimal() and len(text) <= 7 and int(text)):
        raise argparse.ArgumentTypeError(f"{text[:50]!r}: give a whole number from 1 to 9999999")
    return int(text)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The command line of `make bench-NAME`, with the options that each has."""
    made = argparse.ArgumentParser(
        prog=f"make bench-{name} ARGS=", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--quick", action="store_true", help="small sizes: to see that it works")
    made.add_argument(
        "--results", type=Path, default=RESULTS,
        help=f"the folder for the JSON document and the chart ({RESULTS})",
    )  # fmt: skip
    return made


def verdict(name: str, value: float, aim: float, *, most: bool = False, unit: str = "x") -> str:
    """A figure beside its aim: at least, or at `most`, so much."""
    is_met = value <= aim if most else value >= aim
    return f"{value:.2f} {unit} {name}, aim {'<=' if most else '>='} {aim:g}: " + (
        "met" if is_met else "MISSED"
    )


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of how often a figure is that of the turn beside it."""
    return median(a / b for a, b in zip(of, to, strict=True))


def turns(names: Iterable[str], number: int) -> list[str]:
    """The names in the order of a round: each time another is first."""
    order = list(names)
    return order[number % len(order) :] + order[: number % len(order)]


def thousands(value: float) -> str:
    """A whole number, to be read."""
    return f"{value:,.0f}"


def table(title: str, columns: Sequence[str], rows: Iterable[Row], last: str) -> Table:
    """The rows, to be printed."""
    made = Table("", *columns, last, title=title, title_justify="left")
    for row in rows:
        made.add_row(row.name, *(row.figures.get(each, "") for each in columns), row.aim)
    return made


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _line("/proc/cpuinfo", "model name"), "cores": len(os.sched_getaffinity(0)),
        "memory": _line("/proc/meminfo", "MemTotal"), "system": platform.platform(),
        "python": platform.python_version(), "load": round(os.getloadavg()[0], 2),
        "libraries": {name: version(name) for name in _VERSIONS},
    }  # fmt: skip


def machine_line(found: Mapping[str, Any]) -> str:
    """The machine, in one line."""
    libraries = ", ".join(f"{name} {each}" for name, each in found["libraries"].items())
    return (
        f"{found['cores']} cores of {found['cpu']}, {found['memory']}, load {found['load']} before;"
        f" Python {found['python']}, {libraries}"
    )


def _line(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def save(folder: Path, name: str, document: Mapping[str, Any], chart: str) -> None:
    """Write what was measured, and the chart of it (SVG). Raises BenchError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        (folder / f"{name}.svg").write_text(chart)
    except OSError as error:
        raise BenchError(f"--results {str(folder)[:200]!r}: {error.strerror}") from None


class Measured(Protocol):
    """What a benchmark found."""

    def document(self) -> dict[str, Any]: ...

    def chart(self) -> str: ...


def present(
    console: Console, name: str, found: Measured, shown: Table, *, on: Mapping[str, Any],
    folder: Path,
) -> None:  # fmt: skip
    """Print the machine it was measured on and the table, and save the rest. Raises BenchError."""
    console.print(machine_line(on))
    console.print(shown)
    save(folder, name, {"bench": name, "machine": on, **found.document()}, found.chart())


def conduct(name: str, work: Callable[[Say], None], report: Callable[[Console], None]) -> int:
    """Measure, saying what is being done, and report what was, also after Ctrl-C or SIGTERM; the
    exit code: 1 when something could not be measured, 130 when it was interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    code = 0
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("")
            work(lambda what: progress.update(task, description=what))
    except BenchError as error:
        code = _failed(name, error)
    except KeyboardInterrupt:
        code = 130
    try:
        report(console)
    except BenchError as error:
        code = _failed(name, error)
    return code


def _failed(name: str, error: BenchError) -> int:
    print(f"bench-{name}: {error}", file=sys.stderr)
    return 1
