"""The wiring: one function builds every part. Opens nothing, starts nothing.

A tick's way: `cron.triggers` fires -> `cron.scheduler` -> `cron.runner` claims in `locks.manager`
and begins in `storage.runs` -> the body in `stores` writes store and notification in one
transaction -> `notifications.relay` -> `notifications.hub` -> `web.socket` and `web.events`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from solocron.alerts.alerts import Alerts
from solocron.alerts.fleet import Fleet, NoTable
from solocron.alerts.look import DatabaseLook, Look
from solocron.alerts.pings import Pings
from solocron.alerts.shared import SharedAlerts
from solocron.alerts.teller import Teller, alert_channels
from solocron.clock import Clock, SystemClock
from solocron.cron.board import Board
from solocron.cron.job import Job
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.errors import NoDatabase
from solocron.ledger import Ledger, PastRuns
from solocron.locks.cluster import make_link
from solocron.locks.manager import LockManager
from solocron.locks.past_records import PastRecords
from solocron.locks.run_records import RunRecords
from solocron.notifications.channels import Channels
from solocron.notifications.fanout import Fanout
from solocron.notifications.hub import Hub
from solocron.notifications.relay import Relay
from solocron.notifications.retention import Retention
from solocron.settings import Settings
from solocron.storage.alerts import Alert, AlertTable
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.past import Past
from solocron.storage.runs import RunLedger
from solocron.stored import Stored, Stores, build_stored, store_jobs
from solocron.stores.notifier import Notifier
from solocron.stores.service import StoreService
from solocron.tracing import tracer
from solocron.version import __version__
from solocron.watchdog import Watchdog
from solocron.web.api import StoresApi
from solocron.web.auth import Authenticator
from solocron.web.connections import Connections
from solocron.web.events import Events
from solocron.web.fleet import FleetView
from solocron.web.metrics import Metrics
from solocron.web.socket import Sockets
from solocron.web.sources import Sources, StoredSources

_ALERTS_WITHIN_S = 2.0
_ALONE = "each server runs the jobs that are to run without it"


_T = TypeVar("_T")


class _OfStored(Generic[_T]):
    """A part of `Parts.stored`, by its name there. Raises NoDatabase where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, parts: Parts, owner: type) -> _T:
        if parts.stored is None:
            raise NoDatabase(
                "this needs a database, and DATABASE_URL is none: give it sqlite:///file.db or "
                "postgresql://user@host:5432/name"
            )
        part: _T = getattr(parts.stored, self._name)
        return part


@dataclass(frozen=True)
class Parts:
    """Everything a service is made of, wired but not started. What is in `stored` can be asked for
    here, too: without a database that raises NoDatabase."""

    clock: Clock
    ledger: Ledger
    past: PastRuns
    locks: LockManager
    runner: Runner
    board: Board
    alerts: Alerts
    pings: Pings
    connections: Connections
    authenticator: Authenticator
    stored: Stored | None

    database = _OfStored[Database]()
    stores = _OfStored[StoreService]()
    notifier = _OfStored[Notifier]()
    fanout = _OfStored[Fanout]()
    hub = _OfStored[Hub]()
    relay = _OfStored[Relay]()
    deliveries = _OfStored[Deliveries]()
    channels = _OfStored[Channels]()
    retention = _OfStored[Retention]()
    sockets = _OfStored[Sockets]()
    events = _OfStored[Events]()
    api = _OfStored[StoresApi]()

    def work(self, jobs: Mapping[str, Job]) -> Sequence[Coroutine[Any, Any, None]]:
        """What is to be run as tasks, until cancelled, but for the scheduler and the board."""
        return (
            *(self.stored.work() if self.stored else ()), self.alerts.run(), self.pings.run(jobs),
        )  # fmt: skip

    async def check(self) -> None:
        """Raise ConfigError for what cannot be used, as far as that can be found out now."""
        if self.stored is not None:
            await self.stored.check()

    async def flush(self) -> None:
        """Publish the notifications that wait for it."""
        if self.stored is not None:
            await self.stored.relay.flush()

    async def close(self) -> None:
        """Close what was opened besides `locks`. Safe to call twice."""
        await self.board.close()
        await self.alerts.close()
        if self.stored is not None:
            await self.stored.fanout.close()
            await self.stored.database.close()

    def database_seen(self) -> str:
        """The database as it was when last used: up, down or none."""
        if self.stored is None:
            return "none"
        return "down" if self.stored.database.is_lost else "up"

    async def database_ready(self) -> str:
        """The database as it is: up, down or none."""
        if self.stored is None:
            return "none"
        return "up" if await self.stored.database.is_ready() else "down"


def build(settings: Settings, clock: Clock, stores: Stores | None = None) -> Parts:
    """Wire the parts; `stores` says where those are kept, if not where the settings do. Opens
    nothing; raises ConfigError for a setting that cannot work."""
    owner, tracing = f"{socket.gethostname()}:{os.getpid()}", tracer()
    lease_ms, database = int(settings.lease * 1000), _database(settings, stores)
    locks = LockManager(
        settings.redis, clock=clock, lease_ms=lease_ms, deadline_s=settings.redis_deadline,
        max_skew_ms=int(settings.max_skew * 1000), margin_ms=int(settings.reserve * 1000),
        alone="the ledger decides alone" if database else _ALONE,
    )  # fmt: skip
    ledger, past = _ledger(settings, database, locks, owner, clock)
    runner = Runner(
        locks=locks,
        ledger=ledger,
        clock=clock,
        owner=owner,
        lease_ms=lease_ms,
        tracer=tracing,
        grace_s=settings.grace,
    )
    board = _board(settings, runner, locks, clock)
    authenticator = _authenticator(settings)
    connections = Connections(
        limit=settings.max_connections, per_token=settings.max_connections_per_token,
        per_address=settings.max_connections_per_address,
    )  # fmt: skip
    stored = None if database is None else build_stored(
        settings, stores, database, runner, connections=connections, clock=clock, owner=owner,
        authenticator=authenticator, tracing=tracing,
    )  # fmt: skip
    return Parts(
        clock=clock, ledger=ledger, past=past, locks=locks, runner=runner, board=board,
        alerts=_alerts(settings, locks, stored, runner, board, clock), pings=Pings(runner),
        connections=connections, authenticator=authenticator, stored=stored,
    )  # fmt: skip


def _database(settings: Settings, stores: Stores | None) -> Database | None:
    if settings.has_database:
        url = settings.database_url.get_secret_value()
        return Database(url, idle_ms=int(settings.lease * 1000))
    if stores is not None:
        raise NoDatabase(
            "stores are given, and DATABASE_URL is none: give a database, or no stores"
        )
    return None


def _ledger(
    settings: Settings, database: Database | None, locks: LockManager, owner: str, clock: Clock
) -> tuple[Ledger, PastRuns]:
    """Where runs are recorded: in the database, or, without one, in Redis."""
    if database is not None:
        return RunLedger(database), Past(database)
    records = RunRecords(
        locks, clock=clock, owner=owner, environment=settings.environment,
        keep_ms=int(max(settings.history, 2 * settings.catch_up) * 1000),
    )  # fmt: skip
    return records, PastRecords(records)


def _board(settings: Settings, runner: Runner, locks: LockManager, clock: Clock) -> Board:
    link = make_link(settings.redis, clock=clock, deadline_s=settings.redis_deadline)
    return Board(
        link, runner.journal, clock=clock, environment=settings.environment,
        sweep_s=settings.sweep, locks_up=lambda: locks.link.is_up,
    )  # fmt: skip


def _alerts(
    settings: Settings, locks: LockManager, stored: Stored | None, runner: Runner, board: Board,
    clock: Clock,
) -> Alerts:  # fmt: skip
    link = make_link(settings.redis, clock=clock, deadline_s=settings.redis_deadline)
    database, table = None, None
    if stored is not None:
        table = AlertTable(stored.database)
        database = DatabaseLook(
            stored.database, stored.deliveries, counts_dead=bool(settings.channel_urls)
        )
    look = Look(
        locks=locks, database=database, runner=runner, board=board, clock=clock,
        ask_s=min(settings.sweep, settings.alert_after), silent_ms=settings.silent_ms,
    )  # fmt: skip
    fleet = Fleet(table or NoTable(), SharedAlerts(link, settings.environment))
    teller = Teller(
        alert_channels(settings.alert_channel_urls), worker=board.worker,
        environment=settings.environment,
    )  # fmt: skip
    return Alerts(
        look, fleet, teller, runner, clock=clock, after_s=settings.alert_after,
        differ_s=settings.lease + settings.silent_ms / 1000,
        every_s=min(settings.sweep, settings.alert_after / 4),
    )  # fmt: skip


def metrics_of(
    parts: Parts, jobs: Mapping[str, Job], watchdog: Watchdog,
    scheduler: Callable[[], Scheduler | None],
) -> Metrics:  # fmt: skip
    """The metrics of a service with these parts."""

    def running() -> int:
        return each.running if (each := scheduler()) is not None else 0

    def paused() -> set[str]:
        return each.paused if (each := scheduler()) is not None else set()

    sources = Sources(
        clock=parts.clock, jobs=jobs, journal=parts.runner.journal, locks=parts.locks,
        stored=_stored_sources(parts), connections=parts.connections, watchdog=watchdog,
        running=running, paused=paused,
        alarms=lambda: [
            (each.name, "" if each.name == "worker-silent" else each.job)  # too many in time
            for each in parts.alerts.current()
        ],
        build=(__version__, platform.python_version()),
    )  # fmt: skip
    return Metrics(sources, parts.authenticator)


def _stored_sources(parts: Parts) -> StoredSources | None:
    if (stored := parts.stored) is None:
        return None
    return StoredSources(
        database=stored.database, hub=stored.hub, relay=stored.relay, channels=stored.channels
    )


def fleet_of(settings: Settings, parts: Parts, jobs: Mapping[str, Job]) -> FleetView:
    """What operators see of a service with these parts."""

    async def alerts() -> Sequence[Alert]:
        try:
            async with asyncio.timeout(_ALERTS_WITHIN_S):
                return await parts.alerts.fleet()
        except TimeoutError:
            return parts.alerts.current()

    stored = parts.stored
    return FleetView(
        jobs=jobs, locks=parts.locks, past=parts.past, board=parts.board,
        channels=stored.channels if stored else None, stores=stored.stores if stored else None,
        clock=parts.clock,
        silent_ms=settings.silent_ms, alerts=alerts,
    )  # fmt: skip


def _authenticator(settings: Settings) -> Authenticator:
    secret = settings.auth_secret.get_secret_value() if settings.auth_secret else None
    return Authenticator(
        clock=SystemClock(), secret=secret, jwks_file=settings.auth_jwks,
        audience=settings.auth_audience,
    )  # fmt: skip


def built_in_jobs(settings: Settings, parts: Parts) -> Sequence[Job]:
    """The jobs that come with the service: those of stores, which need a database."""
    if parts.stored is None:
        return ()
    return store_jobs(settings, parts.stored, parts.clock, policies(settings))


def policies(settings: Settings) -> dict[str, Any]:
    """What a deployment sets for all its jobs."""
    return {
        "environment": settings.environment,
        "catch_up_ms": int(settings.catch_up * 1000),
        "on_redis_down": settings.on_redis_down,
    }
