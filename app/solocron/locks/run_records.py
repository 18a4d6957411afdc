"""The run ledger of a service without a database: records of runs beside the locks, in Redis.

A record lives in the slot of its job's lock, and is decided on by one script. As long as Redis
keeps its data that is as good as a table: one run per tick, attempts that are counted across
servers, and an end that only the current attempt can write. What Redis forgets, nobody knows.

While Redis is away nothing can be shared. Each server then keeps what it begins in its own memory
(`own_records`), and hands it in with its first word to Redis about that job. Ticks that came before
Redis was lost are left to it: only those that this server had begun and could not end are begun
again here.

Unlike the database's, it has no transactions: a body's effects are not fenced.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, NoReturn
from uuid import uuid4

from solocron.clock import Clock
from solocron.errors import LockUnavailable, NoDatabase, StorageUnavailable
from solocron.ledger import Expired, KeptIn, RunKey, State, Verdict, kept_text
from solocron.locks import run_scripts
from solocron.locks.keys import lock_key
from solocron.locks.manager import LockManager
from solocron.locks.own_records import OwnRecords, Record

log = logging.getLogger("solocron.locks")

MOST_KEPT = 2000  # of a job; a day of one that runs each minute, and more
_MOST_ROWS = 1000
_MAX_ERROR = 2000
_MAX_BY = 200
_AGAIN_S = 0.5
_COLUMNS = (
    "job", "tick", "attempt", "state", "owner", "origin", "fallback", "started_at", "finished_at",
    "duration_ms", "error", "result", "lease_until", "stamp", "params", "asked_by", "progress",
)  # fmt: skip


class RunRecords:
    """The ledger over the connection of `locks`. `owner` is this server, `keep_ms` how long the
    records of a job are kept after its last run. Every method may raise StorageUnavailable."""

    kept_in: KeptIn = "redis"

    def __init__(
        self, locks: LockManager, *, clock: Clock, owner: str, environment: str, keep_ms: int
    ) -> None:
        self._locks = locks
        self._clock = clock
        self._environment = environment
        self._keep_ms = keep_ms
        self._own = OwnRecords(clock, owner[:200])
        self._here: dict[tuple[str, int], Record] = {}  # begun in Redis, and not ended
        self._ended: dict[str, RunKey] = {}  # of each job the last, should Redis forget it

    @property
    def is_lost(self) -> bool:
        """Whether Redis is away (its log says so)."""
        return not self._locks.link.is_up

    # -- a run -----------------------------------------------------------------------------

    async def begin_next(
        self, job: str, tick: int, *, owner: str, now_ms: int, lease_ms: int, fallback: bool = False
    ) -> bool:
        """Leaves it to `unfinished` and `begin`."""
        return False

    async def begin(
        self, job: str, tick: int, *, owner: str, now_ms: int, lease_ms: int, max_attempts: int,
        origin: str = "schedule", fallback: bool = False, params: str | None = None,
        asked_by: str = "", fresh: bool = False, again: int = 0,
    ) -> Verdict:  # fmt: skip
        """Ask for a tick; a `fallback` run is this process's alone while Redis is away. One that
        Redis granted and then could not begin is noted, to be begun here if Redis stays away."""
        first: Record = {
            "job": job, "tick": tick, "attempt": 1, "state": "running", "owner": owner[:200],
            "origin": origin, "fallback": fallback, "started_at": now_ms, "stamp": uuid4().hex,
        }  # fmt: skip
        first |= {} if params is None else {"params": params}
        first |= {"asked_by": kept_text(asked_by, _MAX_BY)} if asked_by else {}
        ended = self._ended.get(job)
        if ended is not None and ended.tick == tick and not again:
            await self._try_to_hand_in(job)
            return Verdict("done", ended.attempt, owner)
        own = partial(
            self._own.begin, first, lease_ms=lease_ms, max_attempts=max_attempts, fresh=fresh,
            again=again,
        )  # fmt: skip
        if fallback and self._lost_ms is not None:
            return own()
        try:
            await self._hand_in(job)
            kind, attempt, whose, given = await self._ask(
                run_scripts.BEGIN, job, tick, json.dumps(first), lease_ms, max_attempts,
                self._keep_ms, MOST_KEPT, now_ms, int(fresh), again,
            )  # fmt: skip
        except StorageUnavailable:
            if fallback:
                return own()
            if origin == "schedule":
                self._own.let_go({**first, "attempt": 0}, stopping=True)
            raise
        if kind == b"run":
            self._here[job, tick] = first
        return Verdict(
            kind.decode(), int(attempt), whose.decode(errors="replace"), given.decode() or None
        )

    async def retry(self, key: RunKey, *, owner: str, lease_ms: int, fallback: bool) -> bool:
        """Open the next attempt of a failed one; waits for Redis unless this process alone knows
        the run."""
        changes = {
            "attempt": key.attempt + 1, "owner": owner[:200], "fallback": fallback,
            "stamp": uuid4().hex,
        }  # fmt: skip
        return await self._until_answered(key, changes, lease_ms)

    async def heartbeat(self, key: RunKey, lease_ms: int, *, progress: str | None = None) -> bool:
        """Extend the lease. A run that only this process knew is handed in once Redis is back."""
        if self._own.has(key):
            await self._try_to_hand_in(key.job)
        return await self._change(key, {} if progress is None else {"progress": progress}, lease_ms)

    async def hand_over(self, key: RunKey, *, stopping: bool = False) -> None:
        """End the lease now. While Redis is away this process notes it, and may go on itself."""
        changes, lease_ms = ({"lease_until": 0}, -1) if stopping else ({}, 0)
        run = self._here.pop((key.job, key.tick), None)
        try:
            await self._change(key, changes, lease_ms)
        except (StorageUnavailable, asyncio.CancelledError):
            if run is not None and run["origin"] in ("schedule", "manual"):
                self._own.let_go({**run, "attempt": key.attempt}, stopping=stopping)
            raise

    async def finish(
        self, key: RunKey, *, now_ms: int, duration_ms: int,
        result: str | None = None, error: str | None = None, progress: str | None = None,
    ) -> bool:  # fmt: skip
        """Write how the run ended, however long that takes: nobody may do again what is done."""
        changes: Record = {
            "state": "failed" if error is not None else "succeeded",
            "finished_at": now_ms, "duration_ms": duration_ms, "result": result,
            "error": error and kept_text(error, _MAX_ERROR), "progress": progress,
        }  # fmt: skip
        changes = {name: value for name, value in changes.items() if value is not None}
        current = await self._until_answered(key, changes, -1)
        if current:
            self._here.pop((key.job, key.tick), None)
            self._ended[key.job] = key
            await self._try_to_hand_in(key.job)
        return current

    async def _change(self, key: RunKey, changes: Record, lease_ms: int) -> bool:
        if self._own.change(key, changes, lease_ms=lease_ms):
            return True
        return bool(await self._ask(
            run_scripts.CHANGE, key.job, key.tick, key.attempt, json.dumps(changes), lease_ms,
            self._keep_ms,
        ))  # fmt: skip

    async def _until_answered(self, key: RunKey, changes: Record, lease_ms: int) -> bool:
        """A lost lease or the end of the process ends it, by cancellation."""
        level = logging.WARNING
        while True:
            try:
                return await self._change(key, changes, lease_ms)
            except StorageUnavailable as error:
                log.log(level, "%s waits for Redis: %s", key, error)
                level = logging.DEBUG
                await asyncio.sleep(_AGAIN_S)

    async def _try_to_hand_in(self, job: str) -> None:
        if self._lost_ms is not None:
            return
        try:
            await self._hand_in(job)
        except StorageUnavailable as error:
            log.debug("the runs of %s are not handed in yet: %s", job, error)

    async def _hand_in(self, job: str) -> None:
        """Tell Redis what this process alone knows of the job; does nothing if that is nothing. A
        run goes on as this process's own while another server has the tick, too."""
        for run, lease_ms in self._own.of(job):
            told = {name: value for name, value in run.items() if name != "lease_until"}
            taken = run["attempt"] and await self._ask(
                run_scripts.ADOPT, job, run["tick"], json.dumps(told), lease_ms, self._keep_ms
            )
            if taken or run["state"] != "running" or lease_ms <= 0:
                self._own.drop(run)

    # -- what cannot be had -----------------------------------------------------------------

    def room(self) -> AbstractAsyncContextManager[None]:
        """Raises NoDatabase."""
        _refuse()

    def fenced(self, key: RunKey) -> AbstractAsyncContextManager[Any]:
        """Raises NoDatabase."""
        _refuse()

    # -- what is known -----------------------------------------------------------------------

    async def answers(self) -> None:
        """Raise StorageUnavailable unless Redis answers."""
        await self.clock_ms()

    async def clock_ms(self) -> int:
        """Redis's time, UTC epoch ms; while it is away, what it would be by the last answer."""
        if self._lost_ms is not None:
            here_ms = self._clock.real_ms(self._clock.now_ms())
            return int(here_ms - self._locks.skew.ahead_ms)
        try:
            seconds, micros = await self._locks.link.call("TIME")
        except LockUnavailable as error:
            raise StorageUnavailable(str(error)) from None
        return int(seconds) * 1000 + int(micros) // 1000

    async def latest_ticks(self, jobs: Iterable[str]) -> dict[str, int]:
        """Of each job the newest scheduled tick; while Redis is away, when it was lost, or the
        newest that was begun here since."""
        names = list(jobs)
        if (lost_ms := self._lost_ms) is not None:
            return {job: max(int(lost_ms), self._own.newest(job)) for job in names}
        found = await asyncio.gather(*(self._ask(run_scripts.LATEST, job) for job in names))
        return {job: int(tick) for job, tick in zip(names, found, strict=True) if tick}

    async def unfinished(
        self, job: str, *, since_ms: int, before_ms: int, now_ms: int
    ) -> list[int]:
        """Scheduled ticks that began and did not end, oldest first."""
        if self._lost_ms is not None:
            return self._own.unfinished(job, since_ms, before_ms)
        args = (since_ms, before_ms, now_ms, self._keep_ms)
        return [int(tick) for tick in await self._ask(run_scripts.UNFINISHED, job, *args)]

    async def expired(self, jobs: Iterable[str], since_ms: int) -> list[Expired]:
        """The running runs whose lease ended, but for backfills."""
        names = list(jobs)
        if self._lost_ms is not None:
            return [each for job in names for each in self._own.expired(job, since_ms)]
        asked = (self._ask(run_scripts.EXPIRED, job, since_ms) for job in names)
        found = zip(names, await asyncio.gather(*asked), strict=True)
        return [
            Expired(job, int(tick), origin.decode())
            for job, flat in found
            for tick, origin in zip(flat[::2], flat[1::2], strict=True)
        ]

    async def states(self, job: str, since_ms: int, until_ms: int) -> dict[int, State]:
        """The state and attempt of each run with a tick in [since_ms, until_ms], oldest first."""
        if self._lost_ms is not None:
            return self._own.states(job, since_ms, until_ms)
        flat = await self._ask(run_scripts.STATES, job, since_ms, until_ms, MOST_KEPT)
        return {
            int(tick): (state.decode(), int(attempt))
            for tick, state, attempt in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        }

    async def history(
        self, job: str, limit: int = 50, *, tick: int | None = None, before: int | None = None
    ) -> list[dict[str, Any]]:
        """A job's newest runs, or that of `tick`, or those of ticks `before` one; newest first,
        `limit` and 1,000 at most."""
        return await self.rows(job, min(limit, _MOST_ROWS), tick=tick, before=before)

    async def rows(
        self, job: str, limit: int, *, tick: int | None = None, before: int | None = None,
        since: int | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """As `history`, without its limit; `since`: only of ticks from then on."""
        newest = "+inf" if before is None else f"({before}"
        oldest = "-inf" if since is None else str(since)
        if tick is not None:
            newest = oldest = str(tick)
        texts = await self._ask(run_scripts.HISTORY, job, newest, oldest, limit)
        found = [json.loads(text) for text in texts]
        return [{name: run.get(name) for name in _COLUMNS} for run in found if run]

    # -- plumbing ----------------------------------------------------------------------------

    @property
    def _lost_ms(self) -> float | None:
        """When Redis was lost; None while it is not known to be."""
        return self._locks.link.lost_ms

    async def _ask(self, script: str, job: str, *args: str | int) -> Any:
        beside = f"{{{lock_key(job, self._environment)}}}"
        keys = [f"{beside}:{name}" for name in ("order", "runs", "running")]
        try:
            return await self._locks.script(script, keys, args)
        except LockUnavailable as error:
            raise StorageUnavailable(str(error)) from None


def _refuse() -> NoReturn:
    raise NoDatabase(
        "run.transaction() needs a database: DATABASE_URL is none, so give it a database, or write "
        "without run.transaction()"
    )
