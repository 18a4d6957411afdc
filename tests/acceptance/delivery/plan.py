"""Who watches what, and which faults come when: pure functions of a seed.

Faults come when so many notifications have been written, not at times: a slow machine sees as many
as a fast one. They are dealt like cards: every kind comes once before any comes again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from solocron.storage.feed import EVERY

WORKERS = 3
STORES = 500
SOCKET, STREAM = "WebSocket", "event stream"

WORKER_KILL, WORKER_FREEZE, DEPLOY = "worker-kill", "worker-freeze", "deploy"
REDIS_RESTART, REDIS_LOSE_DATA, REDIS_AWAY = "redis-restart", "redis-lose-data", "redis-away"
CLIENT_CUT = "client-cut"

# How long each lasts at least and at most, in s.
KINDS = {
    WORKER_KILL: (0.2, 2.0),  # SIGKILL, and a new one after that time
    WORKER_FREEZE: (4.5, 6.0),  # SIGSTOP past its lease, SIGCONT
    DEPLOY: (0.0, 0.0),  # every worker is sent SIGTERM and replaced, one after the other
    REDIS_RESTART: (0.1, 1.0),  # SIGKILL, and started with its data
    REDIS_LOSE_DATA: (0.1, 1.0),  # SHUTDOWN NOSAVE, and started empty
    REDIS_AWAY: (2.0, 4.0),  # the same, but away for seconds
    CLIENT_CUT: (0.0, 0.0),  # a third of the clients lose their connection
}


@dataclass(frozen=True)
class Fault:
    """When `at` notifications have been written something happens to `target`, a worker or a third
    of the clients, for `for_s` s."""

    at: int
    kind: str
    target: int = 0
    for_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:7}  {self.kind:16} #{self.target}  for {self.for_s:.2f} s"


def plan(seed: int, notifications: int, count: int, only: Iterable[str] = ()) -> list[Fault]:
    """`count` faults, evenly among so many notifications; `only` takes a few kinds. The same
    arguments give the same faults."""
    deal = random.Random(f"faults {seed}")
    wanted = sorted(only) or sorted(KINDS)
    deck: list[str] = []
    faults = []
    for number in range(count):
        deck = deck or deal.sample(wanted, len(wanted))
        kind = deck.pop()
        at = round(notifications * (number + 0.5) / (count + 0.5))
        length = round(deal.uniform(*KINDS[kind]), 2)
        faults.append(Fault(at, kind, deal.randrange(WORKERS), length))
    return faults


@dataclass(frozen=True)
class Seat:
    """A client to be: by which wire it listens, and to what."""

    name: str
    wire: str
    topics: Sequence[str]


def store_ids(count: int) -> list[str]:
    """The stores."""
    return [f"shop-{number:03}" for number in range(count)]


def crowd(seed: int, clients: int, stores: int) -> list[Seat]:
    """The clients: a tenth by event streams, the others by WebSockets; of 1,000 three watch all
    stores, one of them by an event stream, and the others 2 to 5 stores each."""
    luck = random.Random(f"clients {seed}")
    ids = store_ids(stores)
    seats = []
    for number in range(clients):
        wire = STREAM if number % 10 == 1 else SOCKET
        topics = sorted(luck.sample(ids, luck.randint(2, 5)))
        if number % 1000 in (7, 11, 12):
            topics = [EVERY]
        seats.append(Seat(f"client {number}", wire, topics))
    return seats
