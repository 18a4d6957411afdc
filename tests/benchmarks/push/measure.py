"""What is measured. Each function returns figures; what is too slow or wrong is not judged here,
but a client that did not get just the bytes it must get is an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

from benchmarks import common_process
from benchmarks.common import ratio as ratio_of
from benchmarks.common import turns
from benchmarks.common_process import Process
from benchmarks.push.swarm import Plan, Swarm, SwarmError, masked
from benchmarks.push.world import (
    EVERYBODY,
    SEEN,
    World,
    answer,
    frames,
    missed,
    payloads,
    store_of,
)

MESSAGE = 200
_FILLING = (20, 8 * 1024)  # messages of a round that soon is more than a kernel takes
_FILLED_WITHIN = 20
_WARM_UP = 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pass:
    """Rounds of messages to every client, each when all have got those of the one before.
    `rate`: deliveries/s, `per_cpu`: deliveries per s of the server's CPU time, `p99_ms`: how long
    after a round began a client had all of it."""

    rate: float
    per_cpu: float
    p99_ms: float


@contextmanager
def running(way: str, environment: Mapping[str, str]) -> Iterator[Process]:
    """A server; what it `said` is its port."""
    command, paths = common_process.ours("benchmarks.push.server", way)
    with common_process.running(f"a server, {way},", command, {**environment, **paths}) as server:
        yield server


class Fan:
    """A server and clients that all get what it sends."""

    def __init__(self, server: Process, swarm: Swarm) -> None:
        self._server = server
        self._swarm = swarm
        self._next = 1

    def rounds(self, count: int, burst: int) -> Pass:
        """So many rounds of `burst` messages."""
        for _ in range(_WARM_UP):
            self._round(burst, MESSAGE)
        began = self._server.ask("cpu")
        late = [self._round(burst, MESSAGE) for _ in range(count)]
        cpu = self._server.ask("cpu") - began
        deliveries = count * burst * len(self._swarm)
        return Pass(
            rate=deliveries / sum(max(each) for each in late),
            per_cpu=deliveries / cpu,
            p99_ms=1000 * quantiles([each for some in late for each in some], n=100)[98],
        )

    def stall(self, clients: int) -> None:
        """Send until the kernel takes no more for so many, who do not read. Raises SwarmError."""
        for _ in range(_FILLED_WITHIN):
            self._round(*_FILLING)
            if self._server.ask("pending") == clients:
                return
        raise SwarmError(f"not {clients} clients are stalled, but {self._server.ask('pending')}")

    def _round(self, burst: int, size: int) -> list[float]:
        """How many s after the server began each client had all."""
        first, self._next = self._next, self._next + burst
        expected = frames(payloads(first, burst, size))
        self._server.tell("send", first, burst, size)
        arrived = self._swarm.gather(expected)
        began = self._server.answer()
        return [each - began for each in arrived]


@contextmanager
def fan(world: World, way: str, clients: int, stalled: int = 0) -> Iterator[Fan]:
    """A server of its own and its clients, of whom the first `stalled` read nothing."""
    says = masked(b'{"type":"subscribe","stores":{"%b":null}}' % EVERYBODY.encode())
    product = way == "solocron"
    hears = frames([answer(EVERYBODY, 0)]) if product else b""
    with running(way, world.environment) as server, closing() as swarms:
        swarm = swarms(server.said)
        swarm.connect(
            Plan(world.token(number, EVERYBODY), says if product else b"", hears, number < stalled)
            for number in range(clients)
        )
        wait_for(server, clients)
        yield Fan(server, swarm)
        wait_for(server, clients)  # none was closed for being slow


@contextmanager
def closing() -> Iterator[Callable[[int], Swarm]]:
    """Makes swarms, whose connections are cut at the end of the block."""
    with ExitStack() as stack:

        def make(port: int) -> Swarm:
            swarm = Swarm(port)
            stack.callback(swarm.close)
            return swarm

        yield make


def wait_for(server: Process, clients: int) -> None:
    """Until the server knows that it has so many clients. Raises SwarmError."""
    deadline = time.monotonic() + 20
    while (found := server.ask("clients")) != clients:
        if time.monotonic() > deadline:
            raise SwarmError(f"the server knows of {found} clients, not {clients}")
        time.sleep(0.01)


def idle_bytes(world: World, way: str, clients: int, progress: Callable[[int], None]) -> float:
    """Bytes of the server's memory per connection that has nothing to do: those of the product
    are each authenticated, and subscribed to a store of their own."""
    product = way == "solocron"
    plans = [
        Plan(
            world.token(number, store_of(number)), subscription(number, "null") if product else b"",
            frames([next(missed(store_of(number), None))]) if product else b"",
        )
        for number in range(clients)
    ]  # fmt: skip
    before = max(1, clients // 50)  # with whom all that is loaded when it is first used was loaded
    with running(way, world.environment) as server, closing() as swarms:
        swarm = swarms(server.said)
        swarm.connect(plans[:before])
        empty = server.ask("resident")
        swarm.connect(plans[before:], progress=progress)
        wait_for(server, clients)
        return (server.ask("resident") - empty) / (clients - before)


def subscription(number: int, seq: str) -> bytes:
    """The frame with which a client subscribes to its store."""
    return masked(b'{"type":"subscribe","stores":{"%b":%b}}' % (
        store_of(number).encode(), seq.encode())
    )  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """All clients came back: after `wall_s` the last had what it missed; `cpu_s` of the server."""

    wall_s: float
    cpu_s: float


def resume(world: World, way: str, clients: int, progress: Callable[[int], None]) -> Resumed:
    """Clients connect again, each with the last seq it has seen of its store, and get the rest."""
    plans = [
        Plan(
            world.token(number, store_of(number)), subscription(number, str(SEEN)),
            frames(list(missed(store_of(number), SEEN))),
        )
        for number in range(clients)
    ]  # fmt: skip
    with running(way, world.environment) as server, closing() as swarms:
        cpu, began = server.ask("cpu"), time.monotonic()
        swarms(server.said).connect(plans, progress=progress)
        wall = time.monotonic() - began
        return Resumed(wall, server.ask("cpu") - cpu)


def in_turn(
    fans: Mapping[str, Fan], bursts: Sequence[int], *, passes: int, rounds: int, progress: Progress
) -> dict[int, dict[str, list[Pass]]]:
    """Passes of each way in turn, so that what else the machine does meets them alike; by burst."""
    found: dict[int, dict[str, list[Pass]]] = {
        burst: {name: [] for name in fans} for burst in bursts
    }
    for number in range(passes):
        for burst in bursts:
            for name in turns(fans, number):
                progress(name)
                found[burst][name].append(fans[name].rounds(rounds, burst))
    return found


def middle(passes: Sequence[Pass], figure: str) -> float:
    """The median of a figure."""
    return median(getattr(each, figure) for each in passes)


def ratio(of: Sequence[Pass], to: Sequence[Pass], figure: str) -> float:
    """The median of how often a figure is that of the pass beside it."""
    return ratio_of(*([getattr(each, figure) for each in passes] for passes in (of, to)))
