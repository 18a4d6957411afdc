"""One tick, from claim to settled: ask Redis, ask the ledger, run the body, finish.

The lock saves work; the ledger keeps the truth. A loser makes one Redis round trip and no
database query. Without Redis the ledger alone admits one server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from solocron.clock import Clock
from solocron.cron.alarm import ALARM_AFTER, LockAlarm
from solocron.cron.attempts import CANCELLED, Attempts
from solocron.cron.job import Job
from solocron.cron.journal import Journal, entry_of
from solocron.cron.manual import Asked, own_tick
from solocron.cron.outcome import Outcome
from solocron.cron.run import Notify, Run
from solocron.cron.spans import end, run_span, tick_span
from solocron.cron.sweep import MAX_MISSED, is_next, left_out, ticks_to_run
from solocron.cron.values import params_text
from solocron.cron.wording import moment
from solocron.errors import LeaseLost, LockUnavailable, StorageUnavailable
from solocron.ledger import KEEPERS, Ledger, RunKey, Verdict
from solocron.locks.lease import Lease
from solocron.locks.manager import LockManager
from solocron.locks.results import Claim, Done, Early, Granted, Held, Paused
from solocron.tracing import Tracer

log = logging.getLogger("solocron.cron")


_BESIDE = ("manual", "backfill")  # the schedule, of which they settle nothing
_TRIED_TICKS = 100
_WHY = {"paused": "it is paused", "redis-down": "Redis is away, and its policy is to skip then"}


class Runner:
    """Runs ticks. `owner` names this server in the ledger; `lease_ms` is its trust window; a thread
    whose lease is lost is given up after `grace_s`.

    The `journal` gets an entry of each tick that is tried here, and of those that were missed.
    `under_way` are the runs whose bodies run here, by job and tick; `begun` are called with the job
    when one begins, `alarmed` with its name and what is wrong with its lock, and with None once
    that is over: they must not raise. While `redis_is_told` says that it is told that Redis is
    away, no lock that cannot be had for it is.
    """

    def __init__(
        self, *, locks: LockManager, ledger: Ledger, clock: Clock, owner: str, lease_ms: int,
        tracer: Tracer | None = None, grace_s: float = 20.0,
    ) -> None:  # fmt: skip
        self._tracer = tracer or Tracer()
        self._locks = locks
        self._ledger = ledger
        self._clock = clock
        self._owner = owner
        self._lease_ms = lease_ms
        self._attempts = Attempts(
            ledger=ledger, clock=clock, owner=owner, lease_ms=lease_ms, tracer=self._tracer,
            grace_s=grace_s,
        )  # fmt: skip
        self.notify: Notify | None = None  # for bodies
        self._waiting: set[str] = set()
        self.alarm = LockAlarm()
        self.under_way = self._attempts.under_way
        self.begun = self._attempts.begun
        self.alarmed: list[Callable[[str, str | None], None]] = []
        self.redis_is_told: Callable[[], bool] = lambda: False
        self.journal = Journal()

    async def run_tick(
        self, job: Job, tick: int, *, origin: str = "schedule", asked: Asked | None = None
    ) -> Outcome:
        """Run the tick here unless another server does or did. Raises nothing but cancellation.

        `origin` is `schedule`, `sweep` (its own trigger should have run it, somewhere), `manual`
        (beside the schedule: what was `asked` for, in a row of its own, or the silent run of that
        tick), `backfill` (beside the schedule, once more if it failed) or `ledger` (the ledger has
        the tick as unfinished, although Redis may count it as settled)."""
        with tick_span(self._tracer, job, tick, origin) as span:
            try:
                outcome = await self._run_tick(job, tick, origin, asked)
            except Exception as error:
                failed = Outcome("failed", f"{type(error).__name__}: {error}")
                self._enter(job, tick, failed, origin)
                raise
            if outcome.state == "skipped":
                _log_skip(job, tick, outcome)
            end(span, job, tick, outcome, origin)
        self._enter(job, outcome.tick or tick, outcome, origin)
        return outcome

    def say_missed(self, job: Job, ticks: Sequence[int]) -> None:
        """Tell of ticks that nobody runs any more; does nothing without one."""
        if not ticks:
            return
        count = f"{MAX_MISSED} or more" if len(ticks) >= MAX_MISSED else len(ticks)
        log.warning(
            "The %s cron missed %s ticks: older than the catch-up window.", job.title, count,
            extra={"job": job.name, "tick": ticks[-1], "reason": "missed"},
        )  # fmt: skip
        for tick in ticks:
            self._enter(job, tick, Outcome("skipped", "missed"), "sweep")

    def _lease_of(self, job: Job) -> int:
        return job.lease_ms or self._lease_ms

    def _enter(self, job: Job, tick: int, outcome: Outcome, origin: str) -> None:
        self.journal.note(entry_of(job, tick, outcome, origin, self._clock.now_ms()))

    async def _run_tick(self, job: Job, tick: int, origin: str, asked: Asked | None) -> Outcome:
        wanted = tick if origin in ("schedule", "sweep") else -1
        claim: Claim | LockUnavailable  # a body that runs in an `except` would have its traceback
        try:
            claim = await self._locks.claim(
                job.lock_key, wanted, job.ttl_ms, lease_ms=self._lease_of(job), reserve=job.reserve
            )
        except LockUnavailable as error:
            claim = error
        if not isinstance(claim, LockUnavailable):
            self._note(job)
        elif not self.redis_is_told():
            self._note(job, failed=str(claim))
        match claim:
            case LockUnavailable():
                if not job.runs_without_redis(self._locks.margin_ms):
                    return Outcome("skipped", "redis-down", detail=str(claim))
                return await self._run_without_redis(job, tick, origin, asked)
            case Held():
                reason = "held" if claim.tick is None or claim.tick >= tick else "overlap"
                return Outcome("skipped", reason, detail=claim.owner)
            case Done():
                return Outcome("skipped", "done")
            case Paused():
                return Outcome("skipped", "paused")
            case Early():
                return Outcome("skipped", "clock-skew")
            case Granted():
                return await self._run_granted(job, tick, claim, origin, asked)

    def _note(self, job: Job, *, failed: str = "") -> None:
        """Say it when Redis said nothing about the lock again and again, and when it does again."""
        change, fields = self.alarm.note(job.name, failed=bool(failed)), {"job": job.name}
        if change == "raised":
            log.error(
                "ALARM: the %s cron failed to get its lock %d times in a row: %s", job.title,
                ALARM_AFTER, failed, extra=fields,
            )  # fmt: skip
        elif change == "resolved":
            log.warning("RESOLVED: the %s cron gets its lock again", job.title, extra=fields)
        for told in self.alarmed if change else ():
            told(job.name, failed or None)

    async def _run_granted(
        self, job: Job, tick: int, granted: Granted, origin: str, asked: Asked | None
    ) -> Outcome:
        """Run what is due, then settle it and free the lock in one script."""
        lease = granted.lease
        if granted.previous_owner:
            log.warning(
                "Taking the %s cron over from a silent owner.", job.title,
                extra={"job": job.name, "tick": tick, "owner": granted.previous_owner},
            )  # fmt: skip
        settle = covers = -1
        try:
            outcome, settle = await self._run_due(
                job, tick, lease, origin, asked, settled=granted.settled, fallback=False
            )
            ran = outcome.state in ("succeeded", "failed")
            if settle == tick and ran and job.overlap == "skip":  # only a run is in a tick's way
                took_ms = (outcome.ended_ms or 0) - (outcome.begun_ms or 0)
                covers = left_out(job, tick, took_ms, self._clock.now_ms())
            return outcome
        finally:
            await self._locks.release(lease, settle=settle, covers=covers)

    async def _run_without_redis(
        self, job: Job, tick: int, origin: str, asked: Asked | None
    ) -> Outcome:
        """Fallback: the ledger arbitrates, and its heartbeat is the lease."""
        lease = Lease(
            job.lock_key, self._locks.new_token(tick), ttl_ms=job.ttl_ms,
            lease_ms=self._lease_of(job), sent_at_s=self._clock.monotonic(), clock=self._clock,
        )  # fmt: skip
        try:
            outcome, _ = await self._run_due(
                job, tick, lease, origin, asked, settled=-1, fallback=True
            )
            return outcome
        finally:
            lease.close()

    async def _run_due(
        self, job: Job, tick: int, lease: Lease, origin: str, asked: Asked | None, *,
        settled: int, fallback: bool,
    ) -> tuple[Outcome, int]:  # fmt: skip
        """Run the tick and what has to run before it; stops at the first that stays unsettled.

        Returns the last outcome and the newest tick that is settled by it (-1: none).
        """
        newest = -1
        try:
            if origin in _BESIDE:
                return await self._run_one(job, tick, lease, origin, fallback, asked), newest
            if fallback and await self._is_early(tick):
                return Outcome("skipped", "clock-skew"), newest
            if is_next(job, tick, settled):
                run = await self._run_next(job, tick, lease, fallback, origin)
                if run is not None:
                    return run, tick if _settled(run) else newest
            for each in await self._due(job, tick, settled, fallback):
                lease.ensure()
                outcome = await self._run_one(job, each, lease, origin, fallback)
                if each < tick:
                    self._enter(job, each, outcome, origin)
                if not _settled(outcome):
                    outcome = outcome if each == tick else _behind(outcome)
                    break
                newest = each
            return outcome, newest
        except LeaseLost as lost:
            return Outcome("lost", str(lost)), newest
        except StorageUnavailable as error:
            self._note_waiting(job, error)
            return Outcome("skipped", f"{self._ledger.kept_in}-down", detail=str(error)), newest

    async def _is_early(self, tick: int) -> bool:
        """Whether by the ledger's clock the tick's time has not come: Redis was not asked."""
        skew, sent_ms = self._locks.skew, self._clock.now_ms()
        theirs_ms = await self._ledger.clock_ms()
        skew.compare(sent_ms, theirs_ms, f"{KEEPERS[self._ledger.kept_in]}'s")
        return theirs_ms < skew.opens_ms(tick)

    def _note_waiting(self, job: Job, error: StorageUnavailable) -> None:
        """Say once that the job's ticks wait for the ledger, until one of them has begun."""
        if job.name not in self._waiting:
            self._waiting.add(job.name)
            log.warning(
                "The %s cron waits for %s, skipping: %s", job.title,
                KEEPERS[self._ledger.kept_in], error,
                extra={"job": job.name, "reason": f"{self._ledger.kept_in}-down"},
            )  # fmt: skip

    async def _due(self, job: Job, tick: int, settled: int, fallback: bool) -> list[int]:
        unfinished = await self._ledger.unfinished(
            job.name, since_ms=tick - job.catch_up_ms, before_ms=tick,
            now_ms=int(self._clock.now_ms()),
        )  # fmt: skip
        if job.every and settled < 0:  # Redis is away, or has forgotten
            settled = await self._settled_by_ledger(job)
        if job.every and settled >= 0:
            oldest = tick - job.catch_up_ms
            self.say_missed(job, job.calendar.between(settled, oldest - 1, MAX_MISSED))
        return ticks_to_run(job, tick, settled=settled, unfinished=unfinished)

    async def _settled_by_ledger(self, job: Job) -> int:
        """The newest tick that is settled as far as the ledger knows (-1: none): with overlap
        `skip`, those that the newest one's run was in the way of are."""
        tick = (await self._ledger.latest_ticks([job.name])).get(job.name, -1)
        if tick < 0 or job.overlap == "queue":
            return tick
        rows = await self._ledger.history(job.name, 1, tick=tick)
        if not rows or (ended_ms := rows[0]["finished_at"]) is None:
            return tick
        return left_out(job, tick, ended_ms - rows[0]["started_at"], ended_ms)

    async def _run_next(
        self, job: Job, tick: int, lease: Lease, fallback: bool, origin: str
    ) -> Outcome | None:
        """Run a tick that nothing has to run before, which the ledger tells as it begins it; None
        for one of which there is more to ask. Raises StorageUnavailable before it began."""
        begun = await self._ledger.begin_next(
            job.name, tick, owner=self._owner, now_ms=int(self._clock.now_ms()),
            lease_ms=self._lease_of(job), fallback=fallback,
        )  # fmt: skip
        if not begun:
            return None
        self._waiting.discard(job.name)
        return await self._run_begun(job, tick, Verdict("run", 1), lease, origin, fallback)

    async def _run_one(
        self, job: Job, tick: int, lease: Lease, origin: str, fallback: bool,
        asked: Asked | None = None,
    ) -> Outcome:  # fmt: skip
        """Ask the ledger for one tick and run it. Raises StorageUnavailable before it began."""
        tick, verdict = await self._begin(job, tick, origin, fallback, asked)
        self._waiting.discard(job.name)
        if verdict.kind != "run":
            return Outcome(
                "skipped", verdict.kind, verdict.attempt, detail=verdict.owner, by_ledger=True
            )
        return await self._run_begun(job, tick, verdict, lease, origin, fallback, asked)

    async def _run_begun(
        self, job: Job, tick: int, verdict: Verdict, lease: Lease, origin: str, fallback: bool,
        asked: Asked | None = None,
    ) -> Outcome:  # fmt: skip
        """Run what the ledger gave us."""
        run = Run(
            RunKey(job.name, tick, verdict.attempt), ledger=self._ledger, lease=lease,
            fallback=fallback, params=verdict.params or params_text(job.params),
            notify=self.notify,
        )  # fmt: skip
        begun = partial(
            replace, begun_ms=int(self._clock.now_ms()), taken_over=verdict.attempt > 1,
            fallback=fallback, tick=tick,
        )  # fmt: skip
        goes_on = asked is None or asked.goes_on
        earlier = verdict.attempt - 1 if origin == "backfill" else 0
        with run_span(self._tracer, job, tick, run.attempt, fallback) as span:
            try:
                outcome: Outcome = begun(
                    await self._attempts.see_through(job, run, goes_on=goes_on, earlier=earlier)
                )
            except asyncio.CancelledError:
                why = "given back: the server stopped" if goes_on else CANCELLED
                lost = Outcome("lost", why, run.attempt)
                end(span, job, tick, begun(lost), origin)
                self._enter(job, tick, begun(lost), origin)
                raise
            end(span, job, tick, outcome, origin)
        return outcome

    async def _begin(
        self, job: Job, tick: int, origin: str, fallback: bool, asked: Asked | None
    ) -> tuple[int, Verdict]:
        """What the ledger says of the tick, and the tick: of a run that is asked for, the first
        that is free."""
        begin = partial(
            self._ledger.begin, job.name, owner=self._owner, lease_ms=self._lease_of(job),
            max_attempts=job.attempts, fallback=fallback, now_ms=int(self._clock.now_ms()),
            origin=origin if origin in _BESIDE else "schedule", again=asked.again if asked else 0,
        )  # fmt: skip
        if asked is None or origin != "manual":
            return tick, await begin(tick, asked_by=asked.by if asked else "")
        params = params_text(asked.params)
        for _ in range(_TRIED_TICKS):
            tick = own_tick(tick)
            verdict = await begin(tick, params=params, asked_by=asked.by, fresh=True)
            if verdict.kind == "run":
                break
            tick += 1
        return tick, verdict


def _settled(outcome: Outcome) -> bool:
    """Whether nobody needs to run the tick again."""
    return outcome.state in ("succeeded", "failed") or outcome.reason == "done"


def _behind(earlier: Outcome) -> Outcome:
    """What becomes of a tick when one before it was not settled."""
    if earlier.reason == "held":
        return Outcome("skipped", "overlap", earlier.attempt, detail=earlier.detail)
    return Outcome(earlier.state, earlier.reason, detail=earlier.detail)


def _log_skip(job: Job, tick: int, skipped: Outcome) -> None:
    """Say so, in a sentence of its own: a host's log may show no fields."""
    reason, at, owner = skipped.reason or "", moment(tick), skipped.detail
    fields = {"job": job.name, "tick": tick, "reason": reason, "detail": skipped.detail}
    if reason == "held":
        log.info("Another server is running the %s cron, skipping.", job.title, extra=fields)
    elif reason == "done":
        log.info("The %s cron of %s has been run, skipping.", job.title, at, extra=fields)
    elif reason == "overlap":
        log.info(
            "An earlier tick of the %s cron is still being run by %s, skipping that of %s.",
            job.title, owner, at, extra=fields,
        )  # fmt: skip
    elif reason in ("database-down", "clock-skew"):  # has been said once
        log.debug("The %s cron of %s waits: %s.", job.title, at, reason, extra=fields)
    else:
        why = _WHY.get(reason, reason)
        log.warning("Skipping the %s cron of %s: %s.", job.title, at, why, extra=fields)
