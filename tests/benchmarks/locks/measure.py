"""What is measured: turns of each way, one after the other, and the floor among them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import BenchError, Say, turns
from benchmarks.common_process import PEERS, Process, ours, running, theirs
from benchmarks.locks.ways import WAYS

FLOOR, NODE, PRODUCT, PEER = "redis-benchmark", "ioredis", "solocron", "redis-py"
_HERE = Path(__file__).parent
_OURS = (PRODUCT, PEER)


@dataclass(frozen=True)
class Turn:
    """So many cycles of acquire and release per second, and what each cost the process in us of
    its CPU time (the floor: unknown)."""

    rate: float
    cpu_us: float | None


Lock = Callable[[int, float], Turn]


@contextmanager
def ways(port: int, most: int) -> Iterator[tuple[dict[str, Lock], dict[str, str]]]:
    """Each way that works here, by name, for at most so many tasks; and why the others do not."""
    found: dict[str, Lock] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for name in (FLOOR, *WAYS, NODE):
            try:
                if name == FLOOR:
                    found[name] = _floor(port)
                else:
                    found[name] = _asking(stack.enter_context(_started(name, port, most)))
            except BenchError as error:
                missing[name] = str(error)
        if PRODUCT in missing:
            raise BenchError(f"{PRODUCT}: {missing[PRODUCT]}")
        yield found, missing


@contextmanager
def _started(name: str, port: int, most: int) -> Iterator[Process]:
    with running(name, *_command(name, port, most)) as process:
        if "error" in process.said:
            raise BenchError(process.said["error"])
        yield process


def _command(name: str, port: int, most: int) -> tuple[Sequence[str], Mapping[str, str]]:
    if name == NODE:
        modules, node = PEERS / "node" / "node_modules", shutil.which("node")
        if node is None or not modules.exists():
            raise BenchError("not installed: get Node and npm, then make peers-node")
        return [node, str(_HERE / "ioredis.js"), str(port)], {"NODE_PATH": str(modules.absolute())}
    arguments = (name, str(port), str(most))
    if name in _OURS:
        return ours("benchmarks.locks.worker", *arguments)
    return theirs("locks", "benchmarks.locks.worker", *arguments)


def _asking(process: Process) -> Lock:
    def turn(tasks: int, seconds: float) -> Turn:
        said = process.ask("turn", tasks, seconds)
        return Turn(said["cycles"] / said["wall_s"], 1e6 * said["cpu_s"] / said["cycles"])

    return turn


def _floor(port: int) -> Lock:
    """Two plain SETs for each cycle, by redis-benchmark on a connection for each task: a client in
    C that does nothing else."""
    command = shutil.which("redis-benchmark")
    if command is None:
        raise BenchError("not installed: apt-get install redis-server")
    known = {1: 10_000.0}  # SETs per s, so that a turn takes about as long as is asked for

    def turn(tasks: int, seconds: float) -> Turn:
        count = max(1000, round(known.get(tasks, 50_000.0) * seconds))
        output = subprocess.run(
            [command, "-p", str(port), "-c", str(tasks), "-n", str(count), "-t", "set", "--csv"],
            capture_output=True, text=True, timeout=120, check=False,
        ).stdout  # fmt: skip
        try:
            known[tasks] = float(output.splitlines()[-1].split(",")[1].strip('"'))
        except (IndexError, ValueError):
            raise BenchError(f"redis-benchmark says {output[:200]!r}") from None
        return Turn(known[tasks] / 2, None)

    return turn


def rounds(
    locks: Mapping[str, Lock], sizes: Sequence[int], *, count: int, seconds: float, say: Say
) -> dict[int, dict[str, list[Turn]]]:
    """Rounds in which each way has its turn with each number of tasks, after one for nothing."""
    found: dict[int, dict[str, list[Turn]]] = {
        tasks: {name: [] for name in locks} for tasks in sizes
    }
    for name, lock in locks.items():
        say(f"{name}: warming up")
        for tasks in sizes:
            lock(tasks, seconds / 4)
    for number in range(count):
        for tasks in sizes:
            for name in turns(locks, number):
                say(f"round {number + 1} of {count}: {tasks} tasks: {name}")
                found[tasks][name].append(locks[name](tasks, seconds))
    return found


def plain(found: Mapping[int, Mapping[str, Sequence[Turn]]]) -> dict[str, dict[str, list[object]]]:
    """The same as JSON has it."""
    return {
        str(tasks): {name: [asdict(each) for each in turns] for name, turns in ways.items()}
        for tasks, ways in found.items()
    }
