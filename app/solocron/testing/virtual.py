"""A host's jobs on a clock that stands still until it is told to go on.

Everything a service is made of is real: triggers, scheduler, runner, ledger and transactions. Only
nothing fires by itself: a step lets the triggers look at the clock, waits for what they began, and
sweeps. Without Redis the ledger decides, which is what it does whenever Redis is away.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from solocron.clock import SystemClock
from solocron.cron.job import Job
from solocron.cron.outcome import Outcome
from solocron.cron.scheduler import Scheduler
from solocron.errors import ConfigError, LockUnavailable, UnknownJob
from solocron.service import Solocron
from solocron.settings import Settings
from solocron.storage.outbox import Notification, Outbox

_MAX_NOTIFICATIONS = 10_000
_NOWHERE = "redis://127.0.0.1:1/0"


class VirtualClock(SystemClock):
    """Wall time that stands still at `now_ms` (UTC epoch ms) until `move_to`; leases and deadlines
    are in real time."""

    def __init__(self, now_ms: float) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> float:
        return self._now_ms

    def real_ms(self, wall_ms: float) -> float:
        return super().now_ms() + wall_ms - self._now_ms

    def move_to(self, now_ms: float) -> None:
        """Go on to this time. Raises ValueError for one that is past."""
        if now_ms < self._now_ms:
            raise ValueError(f"the clock cannot go back by {self._now_ms - now_ms:g} ms")
        self._now_ms = now_ms


@dataclass(frozen=True)
class TickOutcome:
    """What became of a job's tick (UTC epoch ms)."""

    job: str
    tick: int
    outcome: Outcome

    @property
    def at(self) -> datetime:
        """The tick as a time in UTC."""
        return datetime.fromtimestamp(self.tick / 1000, UTC)


class VirtualCron:
    """The jobs of `cron`, beginning at `start` (with a time zone, or as ISO 8601 with one).

    `async with VirtualCron(cron, start="2026-04-24T05:59Z") as virtual:` makes `virtual.cron`, a
    service with the same settings, stores and jobs. Its database is `database_url`, unless given an
    SQLite file that is deleted at the end; its Redis `redis_url`, unless given none; and nothing is
    sent: no email, no alert, no ping. Retries come at once, and without jitter. What a job tells by
    `run.notify` and writes by `run.transaction` is in that database; `cron` itself is not started.
    """

    def __init__(
        self, cron: Solocron, *, start: datetime | str, database_url: str | None = None,
        redis_url: str | None = None,
    ) -> None:  # fmt: skip
        self.clock = VirtualClock(_epoch_ms(start))
        self._host = cron
        self._database_url = database_url
        self._redis_url = redis_url
        self._stack = AsyncExitStack()
        self._cron: Solocron | None = None
        self._scheduler: _Stepped | None = None

    async def __aenter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="solocron-"))
        try:
            await self._open(Path(folder))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._scheduler is not None:
            await self._scheduler.stop(0)
        await self._stack.aclose()

    @property
    def cron(self) -> Solocron:
        """The service under test: its `parts`, `run_job` and `notify`."""
        if self._cron is None:
            raise ConfigError("VirtualCron: enter it first, with `async with`")
        return self._cron

    @property
    def now(self) -> datetime:
        """The time its clock shows, in UTC."""
        return datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC)

    async def advance_to_next_tick(self, job: str | None = None) -> list[TickOutcome]:
        """Go on to the next tick, of the job if one is named, and run all that is due up to then;
        what became of that job's ticks, or of all. Raises UnknownJob, also without any job."""
        if not self.cron.jobs:
            raise UnknownJob("there is no job: give the service one with @cron.job(...)")
        if job is not None and job not in self.cron.jobs:
            raise UnknownJob(
                f"there is no job named {job[:100]!r}: use one of {', '.join(self.cron.jobs)}"
            )
        names = self.cron.jobs if job is None else [job]
        now_ms = self.clock.now_ms()
        due = min(self.cron.jobs[name].calendar.next_after(now_ms) for name in names)
        return [each for each in await self._advance_to(due) if each.job in names]

    async def advance(self, duration: timedelta) -> list[TickOutcome]:
        """Go on by so much, from tick to tick, and run all that is due."""
        return await self._advance_to(self.clock.now_ms() + duration.total_seconds() * 1000)

    async def outage(self, duration: timedelta) -> list[TickOutcome]:
        """Go on by so much while no server is up, then start one: what it catches up with."""
        await self._stepped.stop(0)
        self.clock.move_to(self.clock.now_ms() + duration.total_seconds() * 1000)
        self._start()
        return await self._stepped.step()

    async def notifications(self, store_id: str) -> list[Notification]:
        """What the store was told of, in order; 10,000 notifications at most."""
        outbox = Outbox(self.cron.parts.database)
        _, rows = await outbox.since({store_id: 0}, _MAX_NOTIFICATIONS)
        return rows

    # -- what it is made of ----------------------------------------------------------------

    async def _open(self, folder: Path) -> None:
        database_url = self._database_url or f"sqlite:///{folder / 'test.db'}"
        settings = _quiet(self._host.settings, database_url, self._redis_url)
        self._cron = cron = Solocron(settings, clock=self.clock, stores=self._host.stores)
        for job in self._host.jobs.values():
            if job.name not in cron.jobs:
                cron.add(replace(job, environment=settings.environment))
        parts = cron.parts
        self._stack.push_async_callback(parts.database.close)
        self._stack.push_async_callback(parts.fanout.close)
        await parts.database.migrate()
        await parts.stores.repository.check()
        if self._redis_url is None:
            parts.locks.link = _NoRedis()  # type: ignore[assignment]
        await self._stack.enter_async_context(parts.locks)
        self._start()

    def _start(self) -> None:
        parts = self.cron.parts
        jobs = [_at_once(job, redis=self._redis_url is not None) for job in self.cron.jobs.values()]
        self._scheduler = _Stepped(
            jobs, runner=parts.runner, locks=parts.locks, ledger=parts.ledger, clock=self.clock
        )
        self._scheduler.start()

    @property
    def _stepped(self) -> _Stepped:
        if self._scheduler is None:
            raise ConfigError("VirtualCron: enter it first, with `async with`")
        return self._scheduler

    async def _advance_to(self, until_ms: float) -> list[TickOutcome]:
        found: list[TickOutcome] = []
        jobs = self.cron.jobs.values()
        while True:
            now_ms = self.clock.now_ms()
            due = min((job.calendar.next_after(now_ms) for job in jobs), default=until_ms)
            self.clock.move_to(min(due, until_ms))
            found += await self._stepped.step()
            if due >= until_ms:
                return found


class _Stepped(Scheduler):
    """A scheduler whose triggers and sweep are called by `step` instead of by timers."""

    ended: list[tuple[Job, int, asyncio.Task[Outcome]]]

    def start(self) -> None:
        """Arm the triggers: they note the next tick of each job."""
        self.ended = []
        for trigger in self._arm():
            trigger.initialize()
            trigger.get_next()

    async def step(self) -> list[TickOutcome]:
        """Fire what is due, sweep, and wait for all that was begun by that. Raises what broke."""
        for trigger in self._triggers:
            trigger.get_next()
            trigger.call_func()
            await self._all_ended()  # in turn: the same each time
        await self.sweep()
        await self._all_ended()
        ended, self.ended = self.ended, []
        return [TickOutcome(job.name, tick, task.result()) for job, tick, task in ended]

    async def _all_ended(self) -> None:
        while tasks := [task for _, _, task in self.ended if not task.done()]:
            await asyncio.wait(tasks)

    def _own(
        self, job: Job, tick: int, work: Coroutine[Any, Any, Outcome]
    ) -> asyncio.Task[Outcome]:
        task = super()._own(job, tick, work)
        self.ended.append((job, tick, task))
        return task


class _NoRedis:
    """A link that says at once what one to a Redis that is away says within its deadline."""

    splits = False
    is_up = False

    async def call(self, *args: object, key: str = "") -> Any:
        raise LockUnavailable("there is no Redis: give redis_url to use one")

    async def call_all(self, commands: Sequence[object], keys: Sequence[str] = ()) -> list[Any]:
        raise LockUnavailable("there is no Redis: give redis_url to use one")

    async def servers(self) -> Sequence[_NoRedis]:
        return (self,)

    async def close(self) -> None: ...


def _at_once(job: Job, *, redis: bool) -> Job:
    """The job without what only takes time, and able to do without Redis if there is none."""
    quick: dict[str, Any] = {"backoff_ms": 0, "jitter_ms": 0, "ping": ""}
    if not redis:
        quick["on_redis_down"] = "run"
    return replace(job, **{name: each for name, each in quick.items() if hasattr(job, name)})


def _quiet(settings: Settings, database_url: str, redis_url: str | None) -> Settings:
    """The settings, except for what would reach anybody; keys of its own in a shared Redis."""
    return settings.model_copy(
        update={
            "database_url": SecretStr(database_url),
            "redis_url": SecretStr(redis_url or _NOWHERE),
            "redis_cluster": settings.redis_cluster and redis_url is not None,
            "redis_deadline": settings.redis_deadline if redis_url else 0.05,
            "environment": f"virtual-{uuid.uuid4().hex[:12]}",
            "reserve": 0.0,
            "notify_urls": None, "alert_urls": None,
            "store_auto_close_ping": None, "store_open_reminder_ping": None,
        }
    )  # fmt: skip


def _epoch_ms(start: datetime | str) -> float:
    moment = datetime.fromisoformat(start) if isinstance(start, str) else start
    if moment.tzinfo is None:
        raise ConfigError(f"start {str(start)[:40]!r} has no time zone: add one, such as Z")
    return moment.timestamp() * 1000
