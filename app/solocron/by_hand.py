"""What of a service its host uses by hand: to run a job now or for the past, lock, or notify."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, overload

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.cron.backfill import Backfill, Backfilled, Told, check_kept, span_ms
from solocron.cron.manual import Asked, own_tick
from solocron.cron.outcome import Outcome, T
from solocron.cron.registry import Registry
from solocron.cron.run import Run
from solocron.cron.scheduler import Scheduler
from solocron.cron.values import merged
from solocron.errors import ConfigError
from solocron.locks.lease import Lease
from solocron.locks.lock import Lock
from solocron.locks.run_records import MOST_KEPT
from solocron.settings import Settings
from solocron.wiring import Parts


class ByHand:
    """A part of `Solocron`."""

    settings: Settings
    parts: Parts
    _jobs: Registry
    _scheduler: Scheduler | None  # None: only the parts are used

    @overload
    async def run_job(
        self, job: Callable[[Run], Awaitable[T]], params: Mapping[str, Any] | None = None, *,
        by: str = "",
    ) -> Outcome[T]: ...  # fmt: skip

    @overload
    async def run_job(
        self, job: str | Callable[[Run], Any], params: Mapping[str, Any] | None = None, *,
        by: str = "",
    ) -> Outcome: ...  # fmt: skip

    async def run_job(
        self, job: str | Callable[[Run], Any], params: Mapping[str, Any] | None = None, *,
        by: str = "",
    ) -> Outcome[Any]:  # fmt: skip
        """Run a job now, beside its schedule, unless it is running: one by name, or the decorated
        function. `params` are those that differ from the job's own; `by` is who asks, for the
        history. Its notifications are published before this returns; cancelled, or when the service
        stops before it ended, it is cancelled. Raises UnknownJob, InvalidInput for wrong
        parameters, and ConfigError while the service is not started."""
        found = self._jobs.named(job) if isinstance(job, str) else self._jobs.of(job)
        self._check_started(what := f"run of job {found.name!r}")
        asked = Asked(merged(found.name, found.params, params or {}), by)
        tick = own_tick(self.parts.clock.now_ms())
        work = self.parts.runner.run_tick(found, tick, origin="manual", asked=asked)
        outcome = await self._do(work, what)
        await self.parts.flush()
        return outcome

    async def backfill(
        self, job: str, since: datetime, until: datetime, *, by: str = "", dry_run: bool = False,
        told: Told | None = None,
    ) -> Backfilled:  # fmt: skip
        """Run each tick of the span, both ends included, that has no run that succeeded, oldest
        first; each once, however many servers do so. Times without a zone are in the job's. Takes
        turns with the schedule, waits while the job's lock is held, and can be cancelled, as it is
        when the service stops, and asked for again. `told` is called after each tick; `dry_run`
        only says what there is to do.

        Raises UnknownJob, InvalidInput (for a span that is not over, or of more than 10,000 ticks,
        too), ConfigError while the service is not started, LockUnavailable or StorageUnavailable.
        """
        parts, found = self.parts, self._jobs.named(job)
        self._check_started(what := f"backfill of job {found.name!r}")
        span = span_ms(found, since, until, now_ms := parts.clock.now_ms())
        if parts.stored is None:
            kept_ms = self.settings.history * 1000
            check_kept(found, span[0], now_ms, kept_ms=kept_ms, most=MOST_KEPT)
        backfill = Backfill(
            found, runner=parts.runner, locks=parts.locks, ledger=parts.ledger, clock=parts.clock,
            flush=parts.flush,
        )  # fmt: skip
        plan, states = await backfill.plan(*span)
        if dry_run:
            return plan
        return await self._do(backfill.run(plan, states, by=by, told=told), what)

    def _check_started(self, what: str) -> None:
        if not self.parts.locks.is_open:
            raise ConfigError(f"{what}: start the service, which renews its locks, first")

    async def _do(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """Do it as a part of the service, which ends it when it stops."""
        return await (self._scheduler.do(work, what) if self._scheduler else work)

    def lock(
        self, key: str, ttl: timedelta = timedelta(minutes=5), *, wait: timedelta = timedelta()
    ) -> Lock:
        """A lock of one's own by the service's Redis: see `Lock`. It is held only while the service
        runs. Raises ConfigError."""
        ttl_ms = ttl.total_seconds() * 1000
        return Lock(self.parts.locks, key, ttl_ms, wait_s=wait.total_seconds())

    @asynccontextmanager
    async def hold(self, key: str, ttl: timedelta = timedelta(minutes=5)) -> AsyncIterator[Lease]:
        """Hold the lock around the enclosed code, which is cancelled with LeaseLost when it is
        lost. Raises LockNotAcquired at once when another has it, or LockUnavailable."""
        async with self.lock(key, ttl) as lease:
            yield lease

    async def notify(
        self, store_id: str, type: str, data: Mapping[str, Any],
        connection: AsyncConnection | None = None,
    ) -> int:  # fmt: skip
        """Write a notification of one's own for those who watch the store; its seq. `type` is a
        CloudEvents type that does not begin with `store.`, `data` at most 16 KiB of JSON.

        With a `connection` to the service's database it is part of that transaction, and published
        once that is committed: change first and notify last. Raises InvalidInput (of an unknown
        store, too) or StorageUnavailable.
        """
        return await self.parts.notifier(store_id, type, data, connection)
