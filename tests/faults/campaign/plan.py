"""The schedule of faults: a pure function of its seed.

Faults are dealt like cards: every kind comes once before any comes again, so a short campaign
already sees most of them. They overlap now and then; two faults of one target wait for each other
when they are injected (see `inject`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STANDALONE, SENTINEL = "standalone", "sentinel"
TOPOLOGIES = (STANDALONE, SENTINEL)

LEASE_S = 2.0
_QUIET_S = 1.5  # at the start, and between a fault and the next at the most

# What each kind does to its target, and how long it lasts at least and at most, in s.
_ANYWHERE = {
    "worker-kill": (0.2, 2.0),  # SIGKILL, and a new one after that time
    "worker-freeze": (LEASE_S * 1.2, LEASE_S * 2.5),  # SIGSTOP past its lease, SIGCONT
    "owner-kill": (0.2, 2.0),  # the same for a worker that has just begun a tick
    "owner-freeze": (LEASE_S * 1.2, LEASE_S * 2.5),
    "worker-clock": (1.0, 5.0),  # its clock is stepped, and back at the end
    "worker-hour": (1.0, 2.0),  # its clock is an hour slow for so long
    "deploy": (0.0, 0.0),  # every worker is stopped and replaced, one after the other
    "client-cut": (0.0, 0.0),  # a third of the clients lose their connection
    "flushall": (0.0, 0.0),
    "script-flush": (0.0, 0.0),
    "redis-drop-links": (0.0, 0.0),  # CLIENT KILL of every connection
    "database-fast": (0.2, 1.5),  # stopped in order, and started after that time
    "database-crash": (0.2, 1.5),  # stopped at once
    "database-cut": (0.0, 0.0),  # the links of a worker are cut
    "database-down": (1.0, LEASE_S * 2),  # and refused for so long
    "database-delay": (1.0, 3.0),
    "database-half-open": (1.0, LEASE_S * 2),  # all is swallowed, and the links cut at the end
    "database-silent": (1.0, LEASE_S * 2),  # requests arrive, replies do not
    "database-hang": (20.0, 20.0),  # half-open for long, for a worker that has just begun a tick
    "redis-cut": (0.0, 0.0),
    "redis-down": (1.0, LEASE_S * 2),
    "redis-delay": (1.0, 3.0),
    "redis-half-open": (1.0, LEASE_S * 2),
    "redis-silent": (1.0, LEASE_S * 2),
    "redis-freeze": (1.0, LEASE_S * 2),  # SIGSTOP of the server (the master), SIGCONT
    "redis-restart": (0.1, 2.0),  # SIGKILL, and started with its data
}  # fmt: skip
KINDS = {
    STANDALONE: {
        **_ANYWHERE,
        "redis-lose-data": (0.1, 2.0),  # SIGKILL, and started empty
        "zombie": (
            LEASE_S * 2.25,
            LEASE_S * 2.25,
        ),  # see `inject`: an owner that is passed and writes
    },
    SENTINEL: {
        **_ANYWHERE,
        "failover": (0.0, 0.0),  # ordered: SENTINEL FAILOVER
        "sentinel-freeze": (1.0, 4.0),
        "redis-all-down": (0.5, 2.0),  # every node is killed, and started with its data
    },
}
_REDIS_LINKS = ("redis-cut", "redis-down", "redis-delay", "redis-half-open", "redis-silent")


ON_REQUEST = {"database-hang"}  # too long for the deck: asked for by name


@dataclass(frozen=True)
class Fault:
    """At `at_s` from the campaign's start something happens to `target` for `for_s`.

    `target` counts workers, or nodes, or sentinels; `size` is the delay in s, the clock's step
    in ms, or how many ms after its begin an owner is hit.
    """

    at_s: float
    kind: str
    target: int = 0
    for_s: float = 0.0
    size: float = 0.0

    def __str__(self) -> str:
        size = f" size {self.size:g}" if self.size else ""
        return f"{self.at_s:7.2f} s  {self.kind:18} #{self.target}  for {self.for_s:.2f} s{size}"


def plan(
    seed: int, seconds: float, topology: str, *, workers: int = 4, only: Iterable[str] = ()
) -> list[Fault]:
    """The faults of a campaign of `seconds`, oldest first: all end within it. `only` takes a few
    kinds from the deck. The same arguments give the same faults."""
    deal = random.Random(f"{seed} {topology} {workers}")
    kinds = set(KINDS[topology])
    wanted = sorted(kinds & set(only)) or sorted(kinds - ON_REQUEST)
    faults: list[Fault] = []
    deck: list[str] = []
    at = _QUIET_S
    while True:
        if not deck:
            deck = deal.sample(wanted, len(wanted))
        fault = _fault(deal, deck.pop(), at, topology, workers)
        if fault.at_s + fault.for_s > seconds:
            return faults
        faults.append(fault)
        overlaps = deal.random() < 0.25
        spent = deal.uniform(0, fault.for_s) if overlaps else fault.for_s
        at = round(at + spent + deal.uniform(0.3, _QUIET_S), 3)


def _fault(deal: random.Random, kind: str, at: float, topology: str, workers: int) -> Fault:
    shortest, longest = KINDS[topology][kind]
    nodes = 3 if topology == SENTINEL else workers
    many = nodes if kind in _REDIS_LINKS else 3 if kind == "sentinel-freeze" else workers
    size = 0.0
    if kind.endswith("-delay"):
        size = round(deal.uniform(0.05, 0.6), 2)
    elif kind.startswith("owner-"):
        size = round(deal.uniform(0, 25), 1)
    elif kind == "worker-clock":
        size = deal.choice((-1, 1)) * round(deal.uniform(200, 2000))
    elif kind == "worker-hour":
        size = -3_600_000
    return Fault(at, kind, deal.randrange(many), round(deal.uniform(shortest, longest), 2), size)


def shown(faults: Sequence[Fault]) -> str:
    """The schedule, a line for each fault."""
    return "\n".join(map(str, faults))
