"""The service: one function builds every part, one class starts and stops them.

A tick's way: `cron.triggers` fires -> `cron.scheduler` -> `cron.runner` claims in `locks.manager`
and begins in `storage.runs` -> the body in `stores` writes store and notification in one
transaction -> `notifications.relay` -> `notifications.hub` -> `web.socket`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from aiohttp import web

from solocron.clock import Clock, SystemClock
from solocron.cron.job import Body, Job
from solocron.cron.runner import Outcome, Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, LockUnavailable, StorageUnavailable
from solocron.locks.manager import LockManager
from solocron.notifications.channels import Channels
from solocron.notifications.fanout import Fanout
from solocron.notifications.hub import Hub
from solocron.notifications.relay import Relay
from solocron.notifications.senders import channels_of
from solocron.settings import Settings, load, variable
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.outbox import Outbox
from solocron.storage.runs import RunLedger
from solocron.stores.auto_close import AutoClose
from solocron.stores.open_reminder import OpenReminder
from solocron.stores.repository import StoreRepository
from solocron.web.api import StoresApi
from solocron.web.auth import Authenticator
from solocron.web.guard import is_loopback
from solocron.web.server import MAX_BODY, WebServer, routes
from solocron.web.socket import Sockets

log = logging.getLogger("solocron")

_MIGRATE_RETRY_S = 2.0


@dataclass(frozen=True)
class Parts:
    """Everything a service is made of, wired but not started."""

    clock: Clock
    database: Database
    ledger: RunLedger
    repository: StoreRepository
    locks: LockManager
    runner: Runner
    fanout: Fanout
    hub: Hub
    relay: Relay
    channels: Channels
    sockets: Sockets
    authenticator: Authenticator
    api: StoresApi


def build(settings: Settings, clock: Clock) -> Parts:
    """Wire the parts. Opens nothing; raises ConfigError for a setting that cannot work."""
    owner = f"{socket.gethostname()}:{os.getpid()}"
    lease_ms = int(settings.lease * 1000)
    database = Database(settings.database_url.get_secret_value(), idle_ms=lease_ms)
    locks = LockManager(
        settings.redis, clock=clock, lease_ms=lease_ms, deadline_s=settings.redis_deadline
    )
    ledger = RunLedger(database)
    fanout = Fanout(
        settings.redis, environment=settings.environment, deadline_s=settings.redis_deadline
    )
    outbox = Outbox(database)
    hub = Hub(outbox, fanout)
    channels = Channels(
        Deliveries(database), channels_of(settings.channel_urls), owner=owner, clock=clock
    )
    relay = Relay(outbox, fanout, hub, clock, committed=channels.wake)
    repository = StoreRepository(database, channels.ids)
    secret = settings.auth_secret.get_secret_value() if settings.auth_secret else None
    authenticator = Authenticator(clock=SystemClock(), secret=secret, jwks_file=settings.auth_jwks)
    origins = settings.allowed_origins
    return Parts(
        clock=clock,
        database=database,
        ledger=ledger,
        repository=repository,
        locks=locks,
        runner=Runner(locks=locks, ledger=ledger, clock=clock, owner=owner, lease_ms=lease_ms),
        fanout=fanout,
        hub=hub,
        relay=relay,
        channels=channels,
        sockets=Sockets(hub, authenticator, origins=origins, limit=settings.max_connections),
        authenticator=authenticator,
        api=StoresApi(
            repository,
            authenticator=authenticator,
            origins=origins,
            publish=relay.publish,
            clock=clock,
        ),
    )


class Solocron:
    """Cron jobs that run once, their stores and notifications, on the running event loop.

    `async with cron:` runs the jobs; `cron.attach(app)` runs them with an aiohttp application and
    adds the routes; `solocron serve` does so with a server of its own. Installs no signal handler
    and no loop. Raises ConfigError for settings that cannot work.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.parts = build(settings, clock or SystemClock())
        self._jobs: dict[str, Job] = {}
        self._scheduler: Scheduler | None = None
        self._stopping, self._drained, self._closing = (asyncio.Event() for _ in range(3))
        self._background: asyncio.Task[None] | None = None
        for job in store_jobs(settings, self.parts):
            self.add(job)

    @classmethod
    def from_env(cls) -> Self:
        """A service with the settings of the environment."""
        return cls(load())

    # -- jobs ------------------------------------------------------------------------------

    @property
    def jobs(self) -> Mapping[str, Job]:
        """The jobs by name."""
        return self._jobs

    def add(self, job: Job) -> None:
        """Host a job, from the next start on. Raises ConfigError for a name in use."""
        if job.name in self._jobs:
            raise ConfigError(f"there is a job named {job.name!r} already: give this one another")
        if self._background is not None:
            raise ConfigError(f"job {job.name!r}: add jobs before the service starts")
        self._jobs[job.name] = job

    def job(
        self, schedule: str, *, name: str | None = None, ttl: timedelta = timedelta(minutes=5)
    ) -> Callable[[Body], Body]:
        """Host the decorated coroutine at each tick of `schedule`; its name is the function's."""

        def host(body: Body) -> Body:
            self.add(
                Job(
                    name=name or str(getattr(body, "__name__", "")).replace("_", "-"),
                    calendar=Calendar(schedule, self.settings.timezone),
                    body=body,
                    ttl_ms=int(ttl.total_seconds() * 1000),
                    **_policies(self.settings),
                )
            )
            return body

        return host

    async def run_job(self, name: str) -> Outcome:
        """Run a job now, beside its schedule, unless it is running. Raises ConfigError for a name
        there is no job of. Its notifications are published before this returns."""
        job = self._jobs.get(name)
        if job is None:
            known = ", ".join(self._jobs)
            raise ConfigError(f"there is no job named {name[:100]!r}: use one of {known}")
        now = int(self.parts.clock.now_ms())
        outcome = await self.parts.runner.run_tick(job, now, origin="manual")
        await self.parts.relay.flush()
        return outcome

    # -- lifecycle -------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; does nothing when started. A missing Redis or database is said once,
        and found again without help."""
        if self._background is not None:
            return
        for event in (self._stopping, self._drained, self._closing):
            event.clear()
        started = asyncio.Event()
        self._background = asyncio.create_task(self._run(started), name="solocron")
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([waiting, self._background], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._background.done():
            background, self._background = self._background, None
            background.result()

    async def drain(self) -> None:
        """No new ticks; running jobs get `SOLOCRON_GRACE` s to finish, then are cancelled and
        handed over; their notifications are published and sockets closed with 1001."""
        self._stopping.set()
        if self._background is not None:
            drained = asyncio.create_task(self._drained.wait())
            await asyncio.wait([drained, self._background], return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()

    async def stop(self) -> None:
        """Drain, then close everything: no task, socket or lock is left. Safe to call twice, and
        before `start`."""
        background, self._background = self._background, None
        self._stopping.set()
        self._closing.set()
        if background is not None:
            await background

    async def run_until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`; raises what broke the service, if something does before."""
        background = self._background
        if background is None:
            return
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, background], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if background.done():
            background.result()

    async def _run(self, started: asyncio.Event) -> None:
        parts = self.parts
        scheduler = Scheduler(
            list(self._jobs.values()), runner=parts.runner, locks=parts.locks, ledger=parts.ledger,
            clock=parts.clock, sweep_s=self.settings.sweep,
        )  # fmt: skip
        self._scheduler = scheduler
        try:
            async with parts.locks, asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._migrated()),
                    group.create_task(parts.fanout.run(parts.hub.deliver, parts.hub.resync)),
                    group.create_task(parts.hub.run()),
                    group.create_task(parts.relay.run()),
                    group.create_task(parts.channels.run()),
                ]
                scheduler.start()
                started.set()
                await self._stopping.wait()
                await scheduler.stop(self.settings.grace)
                await parts.relay.flush()
                await parts.sockets.drain()
                self._drained.set()
                await self._closing.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await scheduler.stop(0)
            await parts.database.close()

    async def _migrated(self) -> None:
        """Bring SQLite's schema up to date, or wait until somebody migrated PostgreSQL."""
        database, said = self.parts.database, False
        while True:
            try:
                if database.dialect == "sqlite":
                    await database.migrate()
                if await database.is_ready():
                    return
                reason = "it is not reachable or not migrated: run `solocron migrate`"
            except StorageUnavailable as error:
                reason = str(error)
            if not said:
                log.warning("The database is not ready, runs wait for it: %s", reason)
            said = True
            await asyncio.sleep(_MIGRATE_RETRY_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # -- the web side ----------------------------------------------------------------------

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether this server should get traffic, and the state of its parts. Without Redis it
        works on the ledger, so only the database and a stop count against it."""
        draining = self._stopping.is_set() or self._background is None
        database = not draining and await self.parts.database.is_ready()
        state = {
            "redis": "up" if self.parts.locks.link.is_up else "down",
            "database": "up" if database else "down",
            "draining": draining,
            "jobs_running": self._scheduler.running if self._scheduler else 0,
            "sockets": self.parts.sockets.open,
        }
        return database, state

    async def status(self) -> dict[str, Any]:
        """Redis, database, and each job with its lock and last run (times UTC epoch ms)."""
        parts, jobs = self.parts, list(self._jobs.values())
        try:
            surveys = await parts.locks.survey([(job.lock_key, job.fingerprint) for job in jobs])
        except LockUnavailable:
            surveys = []
        database = await parts.database.is_ready()
        now, rows = parts.clock.now_ms(), []
        for number, job in enumerate(jobs):
            last = (await parts.ledger.history(job.name, 1))[:1] if database else []
            run = last[0] if last else {}
            survey = surveys[number] if surveys else None
            rows.append({
                "job": job.name, "next_tick": job.calendar.next_after(now),
                "owner": survey.owner if survey else None,
                "paused": survey.paused if survey else None,
                "last_tick": run.get("tick"), "state": run.get("state"),
                "attempt": run.get("attempt"), "duration_ms": run.get("duration_ms"),
                "error": run.get("error"),
            })  # fmt: skip
        return {
            "redis": "up" if surveys or not jobs else "down",
            "database": "up" if database else "down", "jobs": rows,
            "deliveries": await parts.channels.status() if database else [],
        }  # fmt: skip

    def routes(self) -> list[web.RouteDef]:
        """The HTTP and WebSocket routes, each guarded."""
        return routes(
            authenticator=self.parts.authenticator, sockets=self.parts.sockets,
            stores=self.parts.api, readiness=self.readiness,
        )  # fmt: skip

    def attach(self, app: web.Application) -> None:
        """Start and stop with an aiohttp application, and serve the routes in it."""

        async def run(app: web.Application) -> AsyncIterator[None]:
            async with self:
                yield

        async def drain(app: web.Application) -> None:
            await self.drain()

        app.add_routes(self.routes())
        app.cleanup_ctx.append(run)
        app.on_shutdown.append(drain)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[WebServer]:
        """Run with a server on SOLOCRON_HOST and SOLOCRON_PORT. Without a secret only loopback
        is served. Raises ConfigError."""
        if self.parts.authenticator.is_open and not is_loopback(self.settings.host):
            raise ConfigError(
                f"SOLOCRON_HOST is {self.settings.host!r} and no token is asked for: set "
                "SOLOCRON_AUTH_SECRET (32 bytes or more) or SOLOCRON_AUTH_JWKS, or serve 127.0.0.1"
            )
        app = web.Application(client_max_size=MAX_BODY)
        self.attach(app)
        server = WebServer(app, host=self.settings.host, port=self.settings.port)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()


def store_jobs(settings: Settings, parts: Parts) -> Sequence[Job]:
    """The two built-in jobs."""
    bodies: list[tuple[str, type[AutoClose] | type[OpenReminder]]] = [
        ("store-auto-close", AutoClose), ("store-open-reminder", OpenReminder),
    ]  # fmt: skip
    return [
        Job(
            name=name,
            calendar=_calendar(settings, f"{name.replace('-', '_')}_schedule"),
            body=kind(parts.repository, parts.clock, parts.relay.publish, batch=settings.batch),
            ttl_ms=int(getattr(settings, f"{name.replace('-', '_')}_ttl") * 1000),
            **_policies(settings),
        )
        for name, kind in bodies
    ]


def _calendar(settings: Settings, field: str) -> Calendar:
    try:
        return Calendar(getattr(settings, field), settings.timezone)
    except ConfigError as error:
        about_zone = str(error).startswith("time zone")
        raise ConfigError(f"{variable('timezone' if about_zone else field)}: {error}") from None


def _policies(settings: Settings) -> dict[str, Any]:
    return {
        "environment": settings.environment,
        "catch_up_ms": int(settings.catch_up * 1000),
        "on_redis_down": settings.on_redis_down,
    }
