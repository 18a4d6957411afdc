"""The command line of the benchmark; `make bench-push` calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.common import Say, conduct, count, machine, parser, present
from benchmarks.push.measure import Pass, fan, idle_bytes, in_turn, resume
from benchmarks.push.report import PEER, PRODUCT, Findings
from benchmarks.push.swarm import allow_files
from benchmarks.push.ways import WAYS
from benchmarks.push.world import World, world

_DESCRIPTION = """\
Measures how fast notifications go to WebSocket clients, and what clients cost: the whole service on
a real Redis and PostgreSQL, beside aiohttp's send_str, websockets.broadcast and picows. Every
server is a process of its own on uvloop; the clients are bare sockets in this one, and what each of
them gets is compared byte for byte. `write(2)` is no server: one system call for each message and
client and no work besides, so in singles nothing can be faster. The ways take
turns, so the ratios hold on a busy machine; rates do not.

  deliveries   each round, every client gets one message, or ten of them, and all have them before
               the next round
  idle         the server's memory, less what it had before; the service's clients are
               authenticated, and subscribed to a store each
  resume       all clients connect, 500 at a time, and get the ten notifications they missed
  stalled      the other clients' p99 while one in a hundred reads nothing

Exit code: 0 when all was measured, whatever came of it; 1 when a client did not get just what it
must get, or something could not be measured; 130 after Ctrl-C, which prints what was done."""

_FEWER = 10  # a tenth of the clients, too: how the cost of a delivery grows with them
_PARTS = ("deliveries", "idle", "resume", "stalled")


@dataclass(frozen=True)
class Options:
    """What is measured, and how thoroughly."""

    clients: int
    idle: int
    passes: int
    rounds: int
    parts: tuple[str, ...]
    results: Path


def parse(arguments: Sequence[str]) -> Options:
    """The command line."""
    options = parser("push", _DESCRIPTION)
    add = options.add_argument
    add("--clients", type=count, default=1000, help="clients that get messages (1000)")
    add("--idle", type=count, default=10_000, help="clients that idle, and that resume (10000)")
    add("--passes", type=count, default=7, help="turns of each way; medians are shown (7)")
    add("--rounds", type=count, default=30, help="rounds in each turn (30)")
    add("--only", choices=_PARTS, action="append", help="measure this alone; may be repeated")
    asked = options.parse_args(arguments)
    part = 10 if asked.quick else 1
    return Options(
        clients=max(100, asked.clients // part), idle=max(100, asked.idle // part),
        passes=min(asked.passes, 3) if asked.quick else asked.passes, rounds=asked.rounds,
        parts=tuple(asked.only or _PARTS), results=asked.results,
    )  # fmt: skip


class Benchmark:
    """Measures in `world`, and puts what it finds in `found`."""

    def __init__(self, options: Options, world: World, say: Say, found: Findings) -> None:
        self._options = options
        self._world = world
        self._say = say
        self.found = found

    def run(self) -> None:
        """Measure what is asked for. Raises BenchError."""
        for part in self._options.parts:
            getattr(self, part)()

    def deliveries(self) -> None:
        options = self._options
        self.found.passes = self._delivered(options.clients, (1, 10), options.passes)
        fewer = max(1, options.clients // _FEWER)
        self.found.fewer = fewer, self._delivered(fewer, (1,), min(options.passes, 3))[1]

    def _delivered(
        self, clients: int, bursts: Sequence[int], passes: int
    ) -> dict[int, dict[str, list[Pass]]]:
        with ExitStack() as stack:
            fans = {}
            for way in WAYS:
                self._say(f"deliveries: {clients:,} clients connect to {way}")
                fans[way] = stack.enter_context(fan(self._world, way, clients))
            return in_turn(
                fans, bursts, passes=passes, rounds=self._options.rounds,
                progress=lambda way: self._say(f"deliveries to {clients:,} clients: {way}"),
            )  # fmt: skip

    def idle(self) -> None:
        for way in (PEER, PRODUCT):
            self.found.memory[way] = idle_bytes(
                self._world, way, self._options.idle, self._counted("idle", way)
            )

    def resume(self) -> None:
        for way in (PEER, PRODUCT):
            self.found.resumed[way] = resume(
                self._world, way, self._options.idle, self._counted("resume", way)
            )

    def stalled(self) -> None:
        options = self._options
        some = max(1, options.clients // 100)
        with ExitStack() as stack:
            self._say("stalled: clients connect")
            none = stack.enter_context(fan(self._world, PRODUCT, options.clients))
            beside = stack.enter_context(fan(self._world, PRODUCT, options.clients, some))
            beside.stall(some)
            self.found.stalled = in_turn(
                {"none": none, "some": beside}, (1,), passes=options.passes, rounds=options.rounds,
                progress=lambda name: self._say(f"stalled: {name}"),
            )[1]  # fmt: skip

    def _counted(self, part: str, way: str) -> Callable[[int], None]:
        return lambda ready: self._say(f"{part}: {ready:,} of {self._options.idle:,} on {way}")


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit code."""
    options = parse(arguments)
    found, before = Findings(options.clients, options.idle), machine()

    def work(say: Say) -> None:
        allow_files(max(options.idle, len(WAYS) * options.clients))
        with world(options.idle) as made:
            Benchmark(options, made, say, found).run()

    def report(console: Console) -> None:
        if found.rows():
            present(console, "push", found, found.table(), on=before, folder=options.results)

    return conduct("push", work, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
