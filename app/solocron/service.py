"""The service: its jobs, and how it starts, drains and stops. `wiring` builds its parts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Self

from aiohttp import web
from typing_extensions import Unpack

from solocron.by_hand import ByHand
from solocron.clock import Clock, SystemClock
from solocron.cron.board import State
from solocron.cron.inquiry import Inquiry, Limits
from solocron.cron.job import Job
from solocron.cron.registry import AnyBody, JobOptions, Registry
from solocron.cron.scheduler import Scheduler
from solocron.errors import ConfigError
from solocron.limits import LIMITS
from solocron.settings import Settings, load
from solocron.stored import Stores
from solocron.watchdog import Watchdog
from solocron.web.asgi import AsgiSockets
from solocron.web.dashboard import Dashboard
from solocron.web.guard import is_loopback
from solocron.web.operations import Operations
from solocron.web.server import WebServer, problems, routes
from solocron.web.status import overview
from solocron.web.ticks import Ticks
from solocron.wiring import build, built_in_jobs, fleet_of, metrics_of, policies

log = logging.getLogger("solocron")


class Solocron(ByHand):
    """Cron jobs that run once, their stores and notifications, on the running event loop.

    `async with cron:` runs the jobs; `cron.attach(app)` runs them with an aiohttp application and
    adds the routes, `cron.lifespan` and the ASGI application `cron.websocket` are for one of ASGI;
    `cron.serving()` has a server of its own. Installs no signal handler and no loop. Raises
    ConfigError for settings that cannot work.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock | None = None, stores: Stores | None = None
    ) -> None:
        """`stores` says where stores are kept, if not where the settings do: in a table of one's
        own, or wherever a repository of one's own has them."""
        self.settings = settings
        self.stores = stores
        self._pid = os.getpid()
        self.parts = build(settings, clock or SystemClock(), stores)
        self._jobs = Registry(
            zone=settings.timezone, policies=policies(settings),
            kept_ms=settings.kept_ms,
        )  # fmt: skip
        self._scheduler: Scheduler | None = None
        self._watchdog = Watchdog()
        self.inquiry = self._inquiry()
        self._metrics = metrics_of(self.parts, self._jobs, self._watchdog, lambda: self._scheduler)
        self._started, self._stopping, self._drained, self._closing = (
            asyncio.Event() for _ in range(4)
        )
        self._background: asyncio.Task[None] | None = None
        for job in built_in_jobs(settings, self.parts):
            self.add(job)

    @classmethod
    def from_env(cls, *, stores: Stores | None = None) -> Self:
        """A service with the settings of the environment."""
        return cls(load(), stores=stores)

    # -- jobs ------------------------------------------------------------------------------

    @property
    def jobs(self) -> Registry:
        """The jobs by name."""
        return self._jobs

    def add(self, job: Job) -> None:
        """Host a job, from the next start on. Raises ConfigError for a name in use."""
        self._jobs.add(job)

    def job(self, schedule: str, **options: Unpack[JobOptions]) -> Callable[[AnyBody], AnyBody]:
        """Host the decorated coroutine at each tick of `schedule`, a cron expression; `JobOptions`
        says what else it may be told. Raises ConfigError."""
        return self._jobs.job(schedule, **options)

    def _inquiry(self) -> Inquiry:
        settings, parts = self.settings, self.parts
        limits = Limits(
            silent_ms=settings.silent_ms,
            kept_ms=settings.kept_ms,
            catch_up_ms=int(settings.catch_up * 1000),
        )
        return Inquiry(
            self._jobs, locks=parts.locks, ledger=parts.ledger, past=parts.past,
            board=parts.board, clock=parts.clock, environment=settings.environment, limits=limits,
        )  # fmt: skip

    # -- lifecycle -------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; does nothing when started. A missing Redis or database is said once,
        and found again without help. Cancelled, it leaves nothing behind."""
        if self._background is not None and self._closing.is_set():
            await asyncio.wait([self._background])  # it is about to end
        if self._background is not None:
            await self._begun(self._background)
            return
        if os.getpid() != self._pid:  # its names, by which it is told apart, are another's
            raise ConfigError(
                f"this Solocron was made by process {self._pid}, of which {os.getpid()} is a fork: "
                "make it in each worker, such as by gunicorn without --preload"
            )
        scheduler = self._new_scheduler()
        self._jobs.freeze()
        for event in (self._started, self._stopping, self._drained, self._closing):
            event.clear()
        self.parts.connections.accept()
        self._background = asyncio.create_task(self._run(scheduler), name="solocron")
        try:
            await self._begun(self._background)
        except BaseException:
            await self._abort()
            raise

    async def _begun(self, background: asyncio.Task[None]) -> None:
        await self._started.wait()
        if background.done():
            background.result()

    async def drain(self) -> None:
        """No new ticks; running jobs get `SOLOCRON_GRACE` s to finish, then are cancelled and
        handed over; their notifications are published and sockets closed with 1001."""
        self._stopping.set()
        if self._background is not None:
            await self._drained.wait()

    async def stop(self) -> None:
        """Drain, then close everything: no task, socket or lock is left. Safe to call twice, and
        before `start`; raises what broke the service. Cancelled, it hands running jobs over at
        once."""
        self._stopping.set()
        self._closing.set()
        background = self._background
        if background is not None:
            try:
                await background
            finally:
                if self._background is background:
                    self._background = None
                    self._jobs.thaw()

    async def _abort(self) -> None:
        background, self._background = self._background, None
        self._jobs.thaw()
        if background is not None:
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`; raises what broke the service, if something does before."""
        if self._background is None:
            return
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopped, self._background], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if self._background is not None and self._background.done():
            self._background.result()

    def _new_scheduler(self) -> Scheduler:
        parts = self.parts
        self._scheduler = Scheduler(
            list(self._jobs.values()), runner=parts.runner, locks=parts.locks, ledger=parts.ledger,
            clock=parts.clock, sweep_s=self.settings.sweep,
        )  # fmt: skip
        return self._scheduler

    async def _run(self, scheduler: Scheduler) -> None:
        """Everything, from the first connection to the last; each wait for it ends with it."""
        parts = self.parts
        try:
            await parts.check()
            async with parts.locks:
                stopped = False
                try:
                    await self._live(scheduler)
                except asyncio.CancelledError:
                    stopped = True
                    raise
                finally:
                    await scheduler.stop(0)
                    await parts.connections.drain()
                    if stopped:  # nobody misses it then, as they shall one that broke
                        await parts.board.leave()
        except ConfigError:
            raise
        except Exception:
            log.critical("The service stopped: a part of it broke", exc_info=True)
            raise
        finally:
            await parts.close()
            self._started.set()
            self._drained.set()

    async def _live(self, scheduler: Scheduler) -> None:
        parts = self.parts
        if parts.stored is None:
            for text, _ in LIMITS:
                log.warning("No database: %s.", text.removeprefix("there is none: "))
        async with asyncio.TaskGroup() as group:
            works = (
                self._watchdog.run(), parts.board.run(self._jobs, self._state),
                *parts.work(self._jobs),
            )  # fmt: skip
            tasks = [group.create_task(work) for work in works]
            scheduler.start()
            self._started.set()
            await self._stopping.wait()
            await scheduler.stop(self.settings.grace)
            await parts.flush()
            await parts.connections.drain()
            await parts.board.leave()
            self._drained.set()
            await self._closing.wait()
            for task in tasks:
                task.cancel()

    def _state(self) -> State:
        parts = self.parts
        return State(
            skew_ms=round(parts.locks.skew.ahead_ms),
            loop_lag_ms=round(self._watchdog.lag_s * 1000),
            redis="up" if parts.locks.link.is_up else "down",
            database=parts.database_seen(),
            jobs_running=self._scheduler.running if self._scheduler else 0,
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # -- the web side ----------------------------------------------------------------------

    @cached_property
    def websocket(self) -> AsgiSockets:
        """`/ws` as an ASGI application. Raises NoDatabase for a service without a database."""
        parts = self.parts
        return AsgiSockets(
            parts.hub, parts.authenticator, parts.connections, is_up=self._is_up,
            origins=self.settings.allowed_origins, lifespan=self.lifespan,
        )  # fmt: skip

    def _is_up(self) -> bool:
        return self._background is not None and not self._background.done()

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether this server should get traffic, and the state of its parts. Without Redis it
        works on the ledger, so only the database, if it is to have one, and a stop count against
        it."""
        draining = self._stopping.is_set() or not self._is_up()
        database = "down" if draining else await self.parts.database_ready()
        state = {
            "redis": "up" if self.parts.locks.link.is_up else "down",
            "database": database,
            "draining": draining,
            "jobs_running": self._scheduler.running if self._scheduler else 0,
            "sockets": self.parts.connections.open,
            "loop_lag_ms": round(self._watchdog.lag_s * 1000),
            "loop_lag_max_ms": round(self._watchdog.worst_s * 1000),
        }
        return database != "down", state

    async def status(self) -> dict[str, Any]:
        """Redis, database, their problems, each job's lock and last run (times UTC epoch ms)."""
        parts, stored = self.parts, self.parts.stored
        others, up = await self.inquiry.fleet()
        return await overview(
            list(self._jobs.values()), list(others.values()), servers_up=up, locks=parts.locks,
            ledger=parts.ledger, now_ms=parts.clock.now_ms(),
            database=stored.database if stored else None,
            channels=stored.channels if stored else None,
        )  # fmt: skip

    def routes(self) -> list[web.RouteDef]:
        """The HTTP and WebSocket routes, each guarded."""
        parts = self.parts
        fleet = fleet_of(self.settings, parts, self._jobs)
        dashboard = Dashboard(
            fleet, authenticator=parts.authenticator, names=self._jobs,
            statistics=parts.locks.statistics.snapshot,
        )  # fmt: skip
        operations = Operations(
            fleet, jobs=self._jobs, locks=parts.locks, scheduler=lambda: self._scheduler,
            authenticator=parts.authenticator, origins=self.settings.allowed_origins,
        )  # fmt: skip
        return routes(
            authenticator=parts.authenticator, clients=parts.stored, operations=operations,
            dashboard=dashboard, metrics=self._metrics,
            ticks=Ticks(self.inquiry, parts.authenticator), readiness=self.readiness,
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
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Start and stop with an ASGI application, such as `FastAPI(lifespan=cron.lifespan)`."""
        async with self:
            yield

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[WebServer]:
        """Run with a server on SOLOCRON_HOST and SOLOCRON_PORT. Without a secret only loopback
        is served. Raises ConfigError."""
        if self.parts.authenticator.is_open and not is_loopback(self.settings.host):
            raise ConfigError(
                f"SOLOCRON_HOST is {self.settings.host!r} and no token is asked for: set "
                "SOLOCRON_AUTH_SECRET (32 bytes or more) or SOLOCRON_AUTH_JWKS, or serve 127.0.0.1"
            )
        app = web.Application(middlewares=[problems])
        self.attach(app)
        server = WebServer(app, host=self.settings.host, port=self.settings.port)
        try:
            await server.start()
            yield server
        finally:
            try:
                await server.stop()
            finally:
                await self._abort()  # what is left when that was cancelled
