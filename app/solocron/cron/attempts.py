"""A run that the ledger gave us: its attempts, one after another, and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from solocron.clock import Clock
from solocron.cron.heart import heartbeats
from solocron.cron.job import MAX_BACKOFF_MS, Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.errors import LeaseLost, StorageUnavailable
from solocron.ledger import Ledger, RunKey
from solocron.tracing import Tracer

UnderWay = tuple[Job, float]  # and since when, monotonic in s


class Attempts:
    """Sees runs through. `under_way` are those whose bodies run here, by job and tick; `begun` are
    called with the job when one begins, and must not raise."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, owner: str, lease_ms: int, tracer: Tracer
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._owner = owner
        self._lease_ms = lease_ms
        self._tracer = tracer
        self.under_way: dict[tuple[str, int], UnderWay] = {}
        self.begun: list[Callable[[Job], None]] = []

    async def see_through(self, job: Job, run: Run) -> Outcome:
        """Run what the ledger gave us until it has ended, or is another server's."""
        self.under_way[run.job, run.tick] = (job, self._clock.monotonic())
        for told in self.begun:
            told(job)
        try:
            async with heartbeats(run, self._ledger, self._clock, self._lease_of(job)):
                async with run.lease.guard():
                    counts, error, duration_ms = await self._repeat(job, run)
                # The attempt number guards this write: a body that is done is not run again only
                # because Redis forgot its lock while the database was away.
                return await self._finish(job, run, counts, error, duration_ms)
        except LeaseLost as lost:
            run.log.error("The %s cron stopped: %s", job.title, lost)
            await asyncio.shield(self._hand_over(run, stopping=False))
            return Outcome("lost", str(lost), run.attempt)
        except asyncio.CancelledError:
            await asyncio.shield(self._hand_over(run, stopping=True))
            raise
        finally:
            self.under_way.pop((run.job, run.tick), None)

    def _lease_of(self, job: Job) -> int:
        return job.lease_ms or self._lease_ms

    async def _repeat(self, job: Job, run: Run) -> tuple[Mapping[str, int], str | None, int]:
        """Run the body until it succeeds or its attempts are used up: its counts, its error and
        the duration in ms."""
        started = self._clock.monotonic()
        while True:
            counts, error = await self._body(job, run)
            if error is None or run.attempt >= job.attempts:
                break
            pause_ms = min(job.backoff_ms * 2 ** min(run.attempt - 1, 20), MAX_BACKOFF_MS)
            await asyncio.sleep(pause_ms / 1000)
            await self._next_attempt(job, run)
        return counts, error, int((self._clock.monotonic() - started) * 1000)

    async def _body(self, job: Job, run: Run) -> tuple[Mapping[str, int], str | None]:
        """Its counts and its error. A body that ends without its lease, however, raises LeaseLost:
        a caught refusal is neither a success nor a failure of the job's own."""
        run.log.info("Starting %s cron job...", job.title)
        try:
            counts, text = _counts(await job.body(run)), None
        except LeaseLost:
            raise
        except Exception as error:
            run.ensure_leased()
            counts, text = {}, f"{type(error).__name__}: {error}"
            self._tracer.record(error)
            run.log.warning("The %s cron failed: %s", job.title, text, exc_info=True)
        run.ensure_leased()
        return counts, text

    async def _next_attempt(self, job: Job, run: Run) -> None:
        key = run.key
        if not await self._ledger.retry(
            key, owner=self._owner, lease_ms=self._lease_of(job), fallback=run.fallback
        ):
            raise LeaseLost(f"attempt {key.attempt} of {key.job} was superseded")
        run.key = RunKey(key.job, key.tick, key.attempt + 1)

    async def _finish(
        self, job: Job, run: Run, counts: Mapping[str, int], error: str | None, duration_ms: int
    ) -> Outcome:
        """Write the end of the run."""
        if not await self._ledger.finish(
            run.key, now_ms=int(self._clock.now_ms()), duration_ms=duration_ms,
            result=json.dumps(dict(counts)) if counts else None, error=error,
        ):  # fmt: skip
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

    async def _hand_over(self, run: Run, *, stopping: bool) -> None:
        try:
            async with asyncio.timeout(2):
                await self._ledger.hand_over(run.key, stopping=stopping)
        except (StorageUnavailable, TimeoutError) as error:
            run.log.info("not handed over, its lease will end: %s", error)


def _counts(result: object) -> dict[str, int]:
    """What a body returned, as far as it is counts."""
    if not isinstance(result, Mapping):
        return {}
    return {str(name): count for name, count in result.items() if isinstance(count, int)}


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
