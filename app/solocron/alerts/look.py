"""What a worker sees of the conditions that alerts are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from solocron.alerts.rules import KINDS
from solocron.clock import Clock
from solocron.cron.attempts import UnderWay
from solocron.cron.board import Board, Presence
from solocron.cron.runner import Runner
from solocron.cron.silence import SEE_WHY, not_replaced
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.locks.manager import LockManager
from solocron.storage.alerts import AlertId
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
            alone = "the database decides alone who runs a tick"
            each = "each server runs the jobs that are to run without it"
            found["redis-down", ""] = f"Redis is away: {alone if self._database else each}"
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
            silent = self._silence(workers, self._clock.monotonic())
            holding |= differences([each for each in workers if each.worker not in silent])
            holding |= silences(workers, silent)
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
    clock that is wrong nor one that was set makes a worker silent."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._last: dict[str, tuple[int, float]] = {}

    def __call__(self, workers: Sequence[Presence], at_s: float) -> set[str]:
        """The silent ones of the workers on the board, which was read at `at_s` (monotonic, s)."""
        before, self._last = self._last, {}
        for each in workers:
            seen_ms, since_s = before.get(each.worker, (-1, at_s))
            is_news = seen_ms != each.seen_ms
            self._last[each.worker] = (each.seen_ms, at_s if is_news else since_s)
        return {name for name, (_, s) in self._last.items() if at_s - s >= self._after_s}

    def forget(self) -> None:
        """Count anew: the board could not be read."""
        self._last.clear()


def silences(workers: Sequence[Presence], silent: Collection[str]) -> dict[AlertId, str]:
    """The `silent` ones of the workers, but for those that another one has replaced."""
    gone = [each.worker for each in not_replaced(workers, silent)]
    if not gone:
        return {}
    return {("worker-silent", ""): f"{_some(gone)}: silent, though not stopped; {SEE_WHY}"}


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
