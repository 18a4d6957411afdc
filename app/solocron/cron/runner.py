"""One tick, from claim to settled: ask Redis, ask the ledger, run the body, finish.

The lock saves work; the ledger keeps the truth. A loser makes one Redis round trip and no
database query. Without Redis the ledger alone admits one server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.errors import LeaseLost, LockUnavailable, StorageUnavailable
from solocron.locks.lease import Lease
from solocron.locks.manager import Done, Granted, Held, LockManager, Paused
from solocron.storage.runs import RunKey, RunLedger

log = logging.getLogger("solocron.cron")

_MAX_TICKS_PER_CLAIM = 1000
_FINISH_PAUSES_S = (0.2, 1.0, 3.0)


@dataclass(frozen=True)
class Outcome:
    """How a tick went on this server.

    `state`: succeeded, failed, lost or skipped; `reason`: a skip reason or the error's text.
    """

    state: str
    reason: str | None = None
    attempt: int = 0
    duration_ms: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


def ticks_to_run(job: Job, tick: int, granted: Granted) -> list[int]:
    """The ticks a granted claim covers, oldest first: the one asked for, and before it what a
    crashed owner left or, with overlap `queue`, every unsettled one of the catch-up window."""
    oldest = tick - job.catch_up_ms
    if job.overlap == "queue" and granted.settled >= 0:
        since = max(granted.settled, oldest - 1)
        missed = job.calendar.between(since, tick - 1, _MAX_TICKS_PER_CLAIM)
        return [*missed, tick]
    crashed = granted.crashed_tick
    if max(granted.settled + 1, oldest) <= crashed < tick:
        return [crashed, tick]
    return [tick]


class Runner:
    """Runs ticks. `owner` names this server in the ledger; `lease_ms` is its trust window."""

    def __init__(
        self, *, locks: LockManager, ledger: RunLedger, clock: Clock, owner: str, lease_ms: int
    ) -> None:
        self._locks = locks
        self._ledger = ledger
        self._clock = clock
        self._owner = owner
        self._lease_ms = lease_ms

    async def run_tick(self, job: Job, tick: int, *, origin: str = "schedule") -> Outcome:
        """Run the tick here unless another server does or did. Raises nothing but cancellation."""
        scheduled = origin == "schedule"
        try:
            claim = await self._locks.claim(
                job.lock_key, tick if scheduled else -1, job.ttl_ms, lease_ms=self._lease_ms
            )
        except LockUnavailable as error:
            if job.on_redis_down == "skip":
                return self._skip(job, tick, "redis-down", str(error))
            return await self._run_without_redis(job, tick, origin)
        match claim:
            case Held():
                reason = "held" if claim.tick is None or claim.tick >= tick else "overlap"
                return self._skip(job, tick, reason, claim.owner)
            case Done():
                return self._skip(job, tick, "done")
            case Paused():
                return self._skip(job, tick, "paused")
            case Granted():
                return await self._run_granted(job, tick, claim, origin)

    def _skip(self, job: Job, tick: int, reason: str, detail: str = "") -> Outcome:
        fields = {"job": job.name, "tick": tick, "reason": reason, "detail": detail}
        if reason in ("held", "overlap", "done"):
            log.info("Another server is running the %s cron, skipping.", job.title, extra=fields)
        else:
            log.warning("Skipping the %s cron: %s.", job.title, reason, extra=fields)
        return Outcome("skipped", reason)

    async def _run_granted(self, job: Job, tick: int, granted: Granted, origin: str) -> Outcome:
        """Run what the grant covers, then settle and free the lock in one script."""
        lease = granted.lease
        if granted.previous_owner:
            log.warning(
                "Taking the %s cron over from a silent owner.", job.title,
                extra={"job": job.name, "tick": tick, "owner": granted.previous_owner},
            )  # fmt: skip
        settle = -1
        outcome = Outcome("skipped", "held")
        try:
            scheduled = origin == "schedule"
            for each in ticks_to_run(job, tick, granted) if scheduled else [tick]:
                outcome = await self._run_one(job, each, lease, origin, fallback=False)
                if not _settled(outcome):
                    return outcome
                settle = each if scheduled else -1
            if scheduled and job.overlap == "skip":
                settle = max(settle, job.calendar.latest_at(self._clock.now_ms()) or settle)
            return outcome
        finally:
            await self._locks.release(lease, settle=settle)

    async def _run_without_redis(self, job: Job, tick: int, origin: str) -> Outcome:
        """Fallback: the ledger arbitrates, and its heartbeat is the lease."""
        lease = Lease(
            job.lock_key, self._locks.new_token(tick), ttl_ms=job.ttl_ms, lease_ms=self._lease_ms,
            sent_at_s=self._clock.monotonic(), clock=self._clock,
        )  # fmt: skip
        try:
            outcome = await self._run_one(job, tick, lease, origin, fallback=True)
        finally:
            lease.close()
        if outcome.state == "skipped":
            return self._skip(job, tick, outcome.reason or "done")
        return outcome

    async def _run_one(
        self, job: Job, tick: int, lease: Lease, origin: str, *, fallback: bool
    ) -> Outcome:
        try:
            verdict = await self._ledger.begin(
                job.name, tick, owner=self._owner, now_ms=int(self._clock.now_ms()),
                lease_ms=self._lease_ms, max_attempts=job.attempts, origin=origin,
                fallback=fallback,
            )  # fmt: skip
        except StorageUnavailable as error:
            log.error("The ledger is not reachable, %s waits: %s", job.title, error)
            return Outcome("skipped", "database-down")
        if verdict.kind != "run":
            return Outcome("skipped", verdict.kind, verdict.attempt)
        run = Run(
            RunKey(job.name, tick, verdict.attempt),
            ledger=self._ledger, lease=lease, fallback=fallback,
        )  # fmt: skip
        return await self._attempts(job, run, lease)

    async def _attempts(self, job: Job, run: Run, lease: Lease) -> Outcome:
        """Run the body until it succeeds or its attempts are used up."""
        started = self._clock.monotonic()
        heart = asyncio.create_task(self._heartbeat(run, lease, own_lease=run.fallback))
        try:
            async with lease.guard():
                while True:
                    counts, error = await self._body(job, run)
                    if error is None or run.attempt >= job.attempts:
                        break
                    await asyncio.sleep(job.backoff_ms * 2 ** (run.attempt - 1) / 1000)
                    await self._next_attempt(run)
                duration = int((self._clock.monotonic() - started) * 1000)
                return await self._finish(job, run, counts, error, duration)
        except LeaseLost as lost:
            run.log.error("The %s cron stopped: %s", job.title, lost)
            await asyncio.shield(self._hand_over(run))
            return Outcome("lost", str(lost), run.attempt)
        except StorageUnavailable as lost:
            run.log.error("The %s cron's outcome could not be written: %s", job.title, lost)
            return Outcome("lost", str(lost), run.attempt)
        except asyncio.CancelledError:
            await asyncio.shield(self._hand_over(run))
            raise
        finally:
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)

    async def _body(self, job: Job, run: Run) -> tuple[Mapping[str, int], str | None]:
        run.log.info("Starting %s cron job...", job.title)
        try:
            return await job.body(run) or {}, None
        except LeaseLost:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            run.log.warning("The %s cron failed: %s", job.title, text, exc_info=True)
            return {}, text

    async def _next_attempt(self, run: Run) -> None:
        key = run.key
        if not await self._ledger.retry(
            key, owner=self._owner, lease_ms=self._lease_ms, fallback=run.fallback
        ):
            raise LeaseLost(f"attempt {key.attempt} of {key.job} was superseded")
        run.key = RunKey(key.job, key.tick, key.attempt + 1)

    async def _finish(
        self, job: Job, run: Run, counts: Mapping[str, int], error: str | None, duration_ms: int
    ) -> Outcome:
        """Write the end of the run, trying again through a short outage of the database."""
        for pause in (*_FINISH_PAUSES_S, None):
            try:
                current = await self._ledger.finish(
                    run.key, now_ms=int(self._clock.now_ms()), duration_ms=duration_ms,
                    result=counts, error=error,
                )  # fmt: skip
                break
            except StorageUnavailable:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        if not current:
            raise LeaseLost(f"attempt {run.attempt} of {run.job} was superseded")
        fields = {"duration_ms": duration_ms, **counts}
        if error is not None:
            run.log.error(
                "%s cron job failed after %d attempts: %s", _capital(job.title), run.attempt,
                error, extra=fields,
            )  # fmt: skip
            return Outcome("failed", error, run.attempt, duration_ms)
        run.log.info("%s cron job completed successfully", _capital(job.title), extra=fields)
        return Outcome("succeeded", None, run.attempt, duration_ms, counts)

    async def _heartbeat(self, run: Run, lease: Lease, *, own_lease: bool) -> None:
        """Extend the ledger's lease at a third of it; the run is lost when it was superseded."""
        due = self._clock.monotonic()
        while True:
            due += self._lease_ms / 3000
            await asyncio.sleep(max(0.0, due - self._clock.monotonic()))
            sent_at = self._clock.monotonic()
            key = run.key
            try:
                current = await self._ledger.heartbeat(key, self._lease_ms)
            except StorageUnavailable:
                continue
            if current and own_lease:
                lease.renewed(sent_at)
            elif not current and key == run.key:
                lease.lose("another server took the run over")

    async def _hand_over(self, run: Run) -> None:
        try:
            async with asyncio.timeout(2):
                await self._ledger.hand_over(run.key)
        except (StorageUnavailable, TimeoutError) as error:
            run.log.info("not handed over, its lease will end: %s", error)


def _settled(outcome: Outcome) -> bool:
    """Whether nobody needs to run the tick again."""
    return outcome.state in ("succeeded", "failed") or outcome.reason == "done"


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
