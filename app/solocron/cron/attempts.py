"""A run that the ledger gave us: its attempts, one after another, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from solocron.clock import Clock
from solocron.cron.heart import heartbeats
from solocron.cron.job import MAX_BACKOFF_MS, Job
from solocron.cron.outcome import Outcome
from solocron.cron.run import Run
from solocron.cron.threads import Threads, is_plain
from solocron.cron.values import InvalidResult, counts_of, result_text
from solocron.errors import InvalidInput, LeaseLost, StorageUnavailable
from solocron.ledger import Ledger, RunKey
from solocron.tracing import Tracer

CANCELLED = "cancelled by who asked for it"
_GIVEN_WITHIN_S = 2.0
_FINAL = (InvalidResult, InvalidInput)  # what it asks for would be as wrong the next time

UnderWay = tuple[Job, float]  # and since when, monotonic in s


@dataclass(frozen=True)
class _Ended:
    """How a body ended, and when (UTC epoch ms): what it returned, and that as JSON, or its error,
    which is final if another attempt could not mend it."""

    result: Any = None
    text: str | None = None
    error: str | None = None
    is_final: bool = False
    duration_ms: int = 0
    at_ms: int = 0


class Attempts:
    """Sees runs through; a thread whose lease is lost is given up after `grace_s`. `under_way` are
    the runs whose bodies run here, by job and tick; `begun` are called with the job when one
    begins, and must not raise."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, owner: str, lease_ms: int, tracer: Tracer,
        grace_s: float,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._clock = clock
        self._owner = owner
        self._lease_ms = lease_ms
        self._tracer = tracer
        self._threads = Threads(grace_s)
        self.under_way: dict[tuple[str, int], UnderWay] = {}
        self.begun: list[Callable[[Job], None]] = []

    async def see_through(
        self, job: Job, run: Run, *, goes_on: bool = True, earlier: int = 0
    ) -> Outcome:
        """Run what the ledger gave us until it has ended, or is another server's. Cancelled, it is
        given back for another server; unless it `goes_on` there, it has failed then. The `earlier`
        attempts do not count."""
        self.under_way[run.job, run.tick] = (job, self._clock.monotonic())
        for told in self.begun:
            told(job)
        try:
            async with heartbeats(run, self._ledger, self._clock, self._lease_of(job)):
                async with run.lease.guard():
                    ended = await self._repeat(job, run, earlier)
                # The attempt number guards this write: a body that is done is not run again only
                # because Redis forgot its lock while the database was away.
                return await self._finish(job, run, ended)
        except LeaseLost as lost:
            run.log.error("The %s cron stopped: %s", job.title, lost)
            await asyncio.shield(self._hand_over(run, stopping=False))
            return Outcome("lost", str(lost), run.attempt)
        except asyncio.CancelledError:
            giving = self._hand_over(run, stopping=True) if goes_on else self._give_up(run)
            await asyncio.shield(giving)
            raise
        finally:
            self.under_way.pop((run.job, run.tick), None)

    def _lease_of(self, job: Job) -> int:
        return job.lease_ms or self._lease_ms

    async def _repeat(self, job: Job, run: Run, earlier: int) -> _Ended:
        """Run the body until it succeeds or its attempts are used up."""
        started = self._clock.monotonic()
        while True:
            ended = await self._body(job, run)
            tried = run.attempt - earlier
            if ended.error is None or ended.is_final or tried >= job.attempts:
                break
            pause_ms = min(job.backoff_ms * 2 ** min(tried - 1, 20), MAX_BACKOFF_MS)
            await asyncio.sleep(pause_ms / 1000)
            await self._next_attempt(job, run)
        duration_ms = int((self._clock.monotonic() - started) * 1000)
        return replace(ended, duration_ms=duration_ms, at_ms=int(self._clock.now_ms()))

    async def _body(self, job: Job, run: Run) -> _Ended:
        """How the body ended. One that ends without its lease, however, raises LeaseLost: a caught
        refusal is neither a success nor a failure of the job's own."""
        run.log.info("Starting %s cron job...", job.title)
        try:
            if is_plain(job.body):
                result = await self._threads.run(job.body, run)
            else:
                result = await job.body(run)
            ended = _Ended(result=result, text=result_text(result))
        except LeaseLost:
            raise
        except Exception as error:
            run.ensure_leased()
            text = f"{type(error).__name__}: {error}"
            ended = _Ended(error=text, is_final=isinstance(error, _FINAL))
            self._tracer.record(error)
            run.log.warning("The %s cron failed: %s", job.title, text, exc_info=True)
        run.ensure_leased()
        return ended

    async def _next_attempt(self, job: Job, run: Run) -> None:
        key = run.key
        if not await self._ledger.retry(
            key, owner=self._owner, lease_ms=self._lease_of(job), fallback=run.fallback
        ):
            raise LeaseLost(f"attempt {key.attempt} of {key.job} was superseded")
        run.key = RunKey(key.job, key.tick, key.attempt + 1)

    async def _finish(self, job: Job, run: Run, ended: _Ended) -> Outcome:
        """Write the end of the run."""
        error, duration_ms = ended.error, ended.duration_ms
        if not await self._ledger.finish(
            run.key, now_ms=ended.at_ms, duration_ms=duration_ms,
            result=ended.text, error=error, progress=run.news(),
        ):  # fmt: skip
            raise LeaseLost(f"attempt {run.attempt} of {run.job} was superseded")
        counts = counts_of(ended.result)
        fields = {"duration_ms": duration_ms, **counts}
        if error is not None:
            run.log.error(
                "%s cron job failed after %d attempt%s: %s", _capital(job.title), run.attempt,
                "" if run.attempt == 1 else "s", error, extra=fields,
            )  # fmt: skip
            return Outcome("failed", error, run.attempt, duration_ms, ended_ms=ended.at_ms)
        run.log.info("%s cron job completed successfully", _capital(job.title), extra=fields)
        return Outcome(
            "succeeded", None, run.attempt, duration_ms, counts, ended_ms=ended.at_ms,
            result=ended.result,
        )  # fmt: skip

    async def _hand_over(self, run: Run, *, stopping: bool) -> None:
        try:
            async with asyncio.timeout(_GIVEN_WITHIN_S):
                await self._ledger.hand_over(run.key, stopping=stopping)
        except (StorageUnavailable, TimeoutError) as error:
            run.log.info("not handed over, its lease will end: %s", error)

    async def _give_up(self, run: Run) -> None:
        """Nobody wants it any more."""
        try:
            async with asyncio.timeout(_GIVEN_WITHIN_S):
                await self._ledger.finish(
                    run.key, now_ms=int(self._clock.now_ms()), duration_ms=0, error=CANCELLED,
                    progress=run.news(),
                )  # fmt: skip
        except (StorageUnavailable, TimeoutError) as error:
            run.log.info("not marked as cancelled, its lease will end: %s", error)


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
