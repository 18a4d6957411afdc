"""REST for operators: jobs, runs, workers, locks and alerts; run, pause, resume, unlock.

To read needs `jobs:run` or `metrics:read`, to run and pause `jobs:run`, to unlock `admin`. What is
done is logged with the token's subject. The token may also be the password of basic
authentication, as the dashboard's page has it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiohttp import web

from solocron.cron.job import Job
from solocron.cron.manual import Asked
from solocron.cron.outcome import Outcome
from solocron.cron.scheduler import Scheduler
from solocron.cron.values import merged
from solocron.errors import (
    ConfigError,
    InvalidInput,
    LockUnavailable,
    SolocronError,
    StorageUnavailable,
    UnknownJob,
)
from solocron.locks.keys import LONGEST_PAUSE_MS, PAUSE_MS, check_key
from solocron.locks.manager import LockManager
from solocron.storage.past import MOST_RUNS
from solocron.web.api import json_of, whole
from solocron.web.auth import Authenticator, Principal
from solocron.web.connections import Draining
from solocron.web.events import Handler
from solocron.web.fleet import MOST_LOCKS, FleetView
from solocron.web.guard import check_origin, own_page_token, quoted, require_reader

log = logging.getLogger("solocron.web")

RUNS = 50
MOST_RUNS_EACH = 100
LONGEST_PAUSE_S = LONGEST_PAUSE_MS // 1000
PAUSE_S = PAUSE_MS // 1000
_MOST_TICK = 2**53
_TICK = re.compile(r"[0-9]{1,16}")


class UnknownLock(SolocronError):
    """Nobody holds that lock."""


class Conflict(SolocronError):
    """It cannot be done as things are now. The message says why."""


class Operations:
    """Handlers for `/api/v1/jobs`, `workers`, `locks`, `alerts` and `summary`. `scheduler` is the
    one that runs, if one does."""

    def __init__(
        self, fleet: FleetView, *, jobs: Mapping[str, Job], locks: LockManager,
        scheduler: Callable[[], Scheduler | None], authenticator: Authenticator,
        origins: frozenset[str],
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._jobs = jobs
        self._locks = locks
        self._scheduler = scheduler
        self._authenticator = authenticator
        self._origins = origins

    def handlers(self) -> Iterator[tuple[str, str, Handler]]:
        """Method, path and handler of each route."""
        for path, reads in (
            ("jobs", self.jobs), ("jobs/{job}", self.job), ("jobs/{job}/runs", self.runs),
            ("workers", self.workers), ("locks", self.locks), ("alerts", self.alerts),
            ("summary", self.summary),
        ):  # fmt: skip
            yield "GET", f"/api/v1/{path}", reads
        for name, acts in (("run", self.run), ("pause", self.pause), ("resume", self.resume)):
            yield "POST", f"/api/v1/jobs/{{job}}/{name}", acts
        yield "DELETE", "/api/v1/locks/{key}", self.unlock

    # -- reading ---------------------------------------------------------------------------

    async def jobs(self, request: web.Request) -> web.Response:
        """`?runs=1`: every job, with so many of its newest runs."""
        self._reader(request)
        return web.json_response(await self._fleet.jobs(list(self._jobs), _runs(request)))

    async def job(self, request: web.Request) -> web.Response:
        """One job, as `jobs` has it."""
        self._reader(request)
        job = self._job(request)
        found = await self._fleet.jobs([job.name], _runs(request))
        (row,) = found.pop("jobs")
        return web.json_response({**found, **row})

    async def runs(self, request: web.Request) -> web.Response:
        """`?limit=50&before=<tick>`: a job's runs, newest first."""
        self._reader(request)
        job = self._job(request)
        limit = whole(request.query.get("limit", str(RUNS)), "limit", MOST_RUNS)
        before = _before(request.query.get("before"))
        return web.json_response(await self._fleet.runs(job.name, limit, before))

    async def workers(self, request: web.Request) -> web.Response:
        """The workers, as they last told of themselves."""
        self._reader(request)
        return web.json_response(await self._fleet.workers())

    async def locks(self, request: web.Request) -> web.Response:
        """`?limit=1000`: the locks held now."""
        self._reader(request)
        limit = whole(request.query.get("limit", str(MOST_LOCKS)), "limit", MOST_LOCKS)
        return web.json_response(await self._fleet.locks(limit))

    async def alerts(self, request: web.Request) -> web.Response:
        """The alerts raised now."""
        self._reader(request)
        return web.json_response(await self._fleet.alerts())

    async def summary(self, request: web.Request) -> web.Response:
        """Stores, deliveries, and the jobs' runs by the hour."""
        self._reader(request)
        return web.json_response(await self._fleet.summary())

    # -- acting ----------------------------------------------------------------------------

    async def run(self, request: web.Request) -> web.Response:
        """`{"params": {"day": 3}}`, if the job has such: run it now, beside its schedule; 202 with
        its tick once it has begun. A run goes on
        without its request, and is stopped as scheduled ones are."""
        principal = self._actor(request, "jobs:run")
        job = self._job(request)
        params = _params(job, await json_of(request) if request.body_exists else {})
        asked = Asked(params, by=principal.subject or "the API", goes_on=True)
        scheduler = self._scheduler()
        begun = scheduler.run_now(job, asked) if scheduler is not None else None
        if begun is None:
            raise Draining("this server starts no runs: it is going away, or not yet there")
        outcome = await begun.outcome()
        if outcome is not None:
            _refuse(job, outcome)
        self._say(principal, "ran job", job.name)
        return web.json_response({"job": job.name, "tick": begun.tick}, status=202)

    async def pause(self, request: web.Request) -> web.Response:
        """`{"for_s": 3600}`: no server begins a tick of the job for so long (unless said 7 days, at
        most 30). A run that has begun goes on."""
        principal = self._actor(request, "jobs:run")
        job = self._job(request)
        for_s = _for_s(await json_of(request) if request.body_exists else {})
        until = await self._locks.pause(
            job.lock_key, ttl_ms=for_s * 1000, by=principal.subject or "the API"
        )
        self._say(principal, f"paused, for {for_s} s, job", job.name)
        return web.json_response({"job": job.name, "paused": True, "paused_until": until})

    async def resume(self, request: web.Request) -> web.Response:
        """End a pause, if there is one."""
        principal = self._actor(request, "jobs:run")
        job = self._job(request)
        if await self._locks.resume(job.lock_key):
            self._say(principal, "resumed job", job.name)
        return web.json_response({"job": job.name, "paused": False, "paused_until": None})

    async def unlock(self, request: web.Request) -> web.Response:
        """Delete a lock, whoever holds it: its owner has lost it then."""
        principal = self._actor(request, "admin")
        key = _lock_key(request.match_info["key"])
        if not await self._locks.unlock(key):
            raise UnknownLock(f"lock {key!r}: nobody holds it")
        self._fleet.unlocked()
        self._say(principal, "deleted lock", key)
        return web.Response(status=204)

    def _job(self, request: web.Request) -> Job:
        name = request.match_info["job"]
        if name not in self._jobs:
            raise UnknownJob(f"job {name[:100]!r}: there is none of that name here")
        return self._jobs[name]

    def _reader(self, request: web.Request) -> None:
        require_reader(self._authenticator.authenticate(own_page_token(request)))

    def _actor(self, request: web.Request, scope: str) -> Principal:
        check_origin(request, self._origins)
        principal = self._authenticator.authenticate(own_page_token(request))
        principal.require(scope)
        return principal

    def _say(self, principal: Principal, did: str, what: str) -> None:
        log.warning("%s %s %s", quoted(principal.subject or "somebody"), did, what)


def _refuse(job: Job, outcome: Outcome) -> None:
    """Raise what keeps a run from beginning."""
    if outcome.reason == "database-down":
        raise StorageUnavailable(outcome.detail)
    if outcome.reason == "redis-down":
        raise LockUnavailable(outcome.detail)
    if outcome.reason in ("held", "overlap"):
        raise Conflict(f"job {job.name!r} is running: {outcome.detail or 'its lock is held'}")
    raise Conflict(f"job {job.name!r} did not begin: {outcome.reason}")


def _runs(request: web.Request) -> int:
    return whole(request.query.get("runs", "1"), "runs", MOST_RUNS_EACH)


def _before(text: str | None) -> int | None:
    if text is None:
        return None
    if not _TICK.fullmatch(text) or int(text) > _MOST_TICK:
        raise InvalidInput(f"before is {text[:40]!r}: give a tick, in UTC epoch ms")
    return int(text)


def _params(job: Job, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = [each for each in fields if each != "params"]
    if unknown:
        raise InvalidInput(f"there is no field {quoted(unknown[0])}: give params, or nothing")
    given = fields.get("params", {})
    if not isinstance(given, dict):
        raise InvalidInput(f"params is {quoted(given)}: give an object of the job's parameters")
    return merged(job.name, job.params, given)


def _for_s(fields: Mapping[str, Any]) -> int:
    unknown = [each for each in fields if each != "for_s"]
    if unknown:
        raise InvalidInput(f"there is no field {quoted(unknown[0])}: give for_s, or nothing")
    seconds = fields.get("for_s", PAUSE_S)
    is_whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    if not is_whole or not 1 <= seconds <= LONGEST_PAUSE_S:
        raise InvalidInput(
            f"for_s is {quoted(seconds)}: give a whole number of s from 1 to {LONGEST_PAUSE_S}"
        )
    return int(seconds)


def _lock_key(key: str) -> str:
    """A key that can be a lock's: no other may be deleted by its name."""
    try:
        check_key(key)
    except ConfigError as error:
        raise InvalidInput(str(error)) from None
    if not key.startswith("cron:"):
        raise InvalidInput(f"lock key {quoted(key)}: locks of jobs begin with 'cron:'")
    return key
