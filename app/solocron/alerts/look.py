"""What a worker sees of the conditions that alerts are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from solocron.alerts.rules import KINDS
from solocron.clock import Clock
from solocron.cron.attempts import UnderWay
from solocron.cron.board import DAY_MS, Board, Presence
from solocron.cron.runner import Runner
from solocron.cron.silence import SEE_WHY, not_replaced
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.locks.manager import LockManager
from solocron.storage.alerts import MAX_ABOUT, AlertId
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database

_WITHIN_S = 3.0
_MOST_NAMED = 3
_MOST_DEAD = 1000


@dataclass(frozen=True)
class Seen:
    """The conditions that hold, each with a text, and the alerts of which nothing is known now."""

    holding: Mapping[AlertId, str]
    unknown: frozenset[str]


class Look:
    """Call it for what is seen now. What must be asked for is asked every `ask_s`; `database`: how
    it is looked at, if there is one; a worker is silent `silent_ms` after its last sign."""

    def __init__(
        self, *, locks: LockManager, database: DatabaseLook | None, runner: Runner, board: Board,
        clock: Clock, ask_s: float, silent_ms: int,
    ) -> None:  # fmt: skip
        self._locks = locks
        self._database = database
        self._runner = runner
        self._board = board
        self._clock = clock
        self._ask_s = ask_s
        self._silence = Silence(silent_ms / 1000)
        self._losses = 0
        self._asked_s: float | None = None
        self._asked = Seen({}, frozenset(KINDS))

    async def __call__(self) -> Seen:
        """Raises nothing but cancellation."""
        now_s = self._clock.monotonic()
        if self._asked_s is None or now_s >= self._asked_s + self._ask_s:
            self._asked_s = now_s
            self._asked = await self._ask()
        return Seen({**self._asked.holding, **self._known()}, self._asked.unknown)

    def _known(self) -> dict[AlertId, str]:
        """What needs no question."""
        found: dict[AlertId, str] = {}
        if not self._locks.link.is_up:
            then = ": each server runs the jobs that are to run without it"
            if self._database is not None:
                then = ": the database decides alone who runs a tick"
                if self._database.known():
                    then = ", and so is the database: no tick is run"
            found["redis-down", ""] = f"Redis is away{then}"
        if self._database is not None:
            found |= self._database.known()
        if self._locks.skew.off:
            seconds = self._locks.skew.ahead_ms / 1000
            found["clock-skew", ""] = f"a server's clock is {seconds:+.0f} s off: set it by NTP"
        found |= overruns(list(self._runner.under_way.values()), self._clock.monotonic())
        return found

    async def _ask(self) -> Seen:
        """What the database and the board say."""
        holding: dict[AlertId, str] = {}
        unknown = {"lock-unavailable"}  # the runner tells of it
        if self._database is not None:
            of_database = await self._database.ask()
            holding |= of_database.holding
            unknown |= of_database.unknown
        try:
            workers = await self._board.workers()
            losses, self._losses = self._losses, self._board.losses
            gone = self._silence(workers, self._clock.monotonic(), is_lost=losses != self._losses)
            silent = self._silence.silent
            holding |= differences([each for each in workers if each.worker not in silent])
            holding |= silences(gone)
        except LockUnavailable:
            unknown |= {"schedules-differ", "worker-silent"}
            self._silence.forget()  # nor can the workers tell of themselves
        return Seen(holding, frozenset(unknown))


class DatabaseLook:
    """What is seen of the database; `counts_dead`: whether this worker delivers at all, so that its
    dead letters are looked for."""

    def __init__(self, database: Database, deliveries: Deliveries, *, counts_dead: bool) -> None:
        self._database = database
        self._deliveries = deliveries
        self._counts_dead = counts_dead

    def known(self) -> dict[AlertId, str]:
        """What needs no question."""
        if not self._database.is_lost:
            return {}
        return {("database-down", ""): "the database is away: no tick is run"}

    async def ask(self) -> Seen:
        """What it says of itself and of dead letters."""
        holding: dict[AlertId, str] = {}
        try:
            async with asyncio.timeout(_WITHIN_S):
                async with self._database.connect():
                    pass
                dead = await self._deliveries.count_dead(_MOST_DEAD) if self._counts_dead else 0
        except StorageUnavailable:
            return Seen(holding, frozenset({"dead-letters"}))
        except TimeoutError:
            holding["database-down", ""] = "the database gives no answer: no tick is run"
            return Seen(holding, frozenset({"dead-letters"}))
        if dead:
            holding["dead-letters", ""] = (
                f"{dead}{' or more' if dead == _MOST_DEAD else ''} emails, SMS and the like "
                "were given up: see `solocron deadletters`"
            )
        return Seen(holding, frozenset())


class Silence:
    """Tells which workers have been silent for `after_s`, by this worker's own time: neither a
    clock that is wrong nor one that was set makes a worker silent. `silent` are all that are."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._last: dict[str, tuple[int, float]] = {}
        self._known: dict[str, Presence] = {}
        self._lost: dict[str, Presence] = {}
        self._replaced: set[str] = set()
        self.silent: set[str] = set()

    def __call__(
        self, workers: Sequence[Presence], at_s: float, *, is_lost: bool = False
    ) -> list[Presence]:
        """The silent ones that no other has replaced, of the workers on the board, which was read
        at `at_s` (monotonic, s). If the board `is_lost`, as when Redis lost its data, who was
        silent stays so: for a day, or until it is back or replaced. Who was once replaced is so
        though that one stops."""
        all_ = [*workers, *self._remembered({each.worker for each in workers}, at_s, is_lost)]
        before, self._last = self._last, {}
        for each in all_:
            seen_ms, since_s = before.get(each.worker, (-1, at_s))
            is_news = seen_ms != each.seen_ms
            self._last[each.worker] = (each.seen_ms, at_s if is_news else since_s)
        self.silent = {n for n, (_, s) in self._last.items() if at_s - s >= self._after_s}
        self._known = {each.worker: each for each in all_}
        gone = not_replaced(all_, self.silent)
        self._replaced &= self.silent
        self._replaced |= self.silent - {each.worker for each in gone}
        return [each for each in gone if each.worker not in self._replaced]

    def _remembered(self, names: Collection[str], at_s: float, is_lost: bool) -> list[Presence]:
        """The silent ones that Redis lost and that are not back."""
        if is_lost:
            self._lost = {name: self._known[name] for name in self.silent}
        past_s = at_s - DAY_MS / 1000
        self._lost = {
            name: each
            for name, each in self._lost.items()
            if name not in names and self._last[name][1] > past_s
        }
        return list(self._lost.values())

    def forget(self) -> None:
        """Count anew: the board could not be read. Who was silent is so until there is news."""
        self._last = {name: self._last[name] for name in self.silent}


def silences(gone: Sequence[Presence]) -> dict[AlertId, str]:
    """An alert of each of these workers."""
    return {
        ("worker-silent", name[-MAX_ABOUT:]): f"{name}: silent, though not stopped; {SEE_WHY}"
        for name in (_plain(each.worker) for each in gone)
    }


def overruns(running: Sequence[UnderWay], now_s: float) -> dict[AlertId, str]:
    """The runs that take longer than they should: than expected, or than their lock's TTL."""
    found: dict[AlertId, str] = {}
    for job, since_s in running:
        limit_ms = min(job.ttl_ms, job.expected_ms or job.ttl_ms)
        if (now_s - since_s) * 1000 > limit_ms:
            found["job-overran", job.name] = (
                f"the {job.name} cron runs for longer than {limit_ms / 1000:g} s"
            )
    return found


def differences(workers: Sequence[Presence]) -> dict[AlertId, str]:
    """The jobs that these workers run by more than one schedule, and which has which."""
    found: dict[str, dict[str, list[str]]] = {}
    for each in workers:
        for job, schedule in each.schedules.items():
            found.setdefault(job, {}).setdefault(schedule, []).append(each.worker)
    return {
        ("schedules-differ", job): (
            f"job {job[:80]} has more than one schedule: "
            + _some([f"{each[:60]!r} on {_some(names)}" for each, names in by.items()], "; ")
            + ": give all servers the same"
        )
        for job, by in found.items() if len(by) > 1
    }  # fmt: skip


def _some(names: Sequence[str], between: str = ", ") -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return between.join(each[:200] for each in names[:_MOST_NAMED]) + more


def _plain(name: str) -> str:
    """The name as it can be kept and shown: what Redis has need not be ours."""
    return "".join(each if each.isprintable() else "?" for each in name[:200])
