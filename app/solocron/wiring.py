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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solocron.alerts.alerts import Alerts
from solocron.alerts.fleet import Fleet
from solocron.alerts.look import Look
from solocron.alerts.pings import Pings
from solocron.alerts.shared import SharedAlerts
from solocron.alerts.teller import Teller, alert_channels
from solocron.clock import Clock, SystemClock
from solocron.cron.board import Board
from solocron.cron.job import Job
from solocron.cron.runner import Runner
from solocron.cron.scheduler import Scheduler
from solocron.cron.ticks import Calendar
from solocron.locks.cluster import make_link
from solocron.locks.manager import LockManager
from solocron.notifications.channels import Channels, Policy
from solocron.notifications.fanout import Fanout
from solocron.notifications.hub import Hub
from solocron.notifications.relay import Relay
from solocron.notifications.retention import Retention
from solocron.notifications.senders import channels_of
from solocron.settings import Settings
from solocron.storage.alerts import Alert, AlertTable
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.history import History
from solocron.storage.outbox import Outbox
from solocron.storage.past import Past
from solocron.storage.runs import RunLedger
from solocron.stores.auto_close import AutoClose
from solocron.stores.notifier import Notifier
from solocron.stores.open_reminder import OpenReminder
from solocron.stores.repository import StoreRepository
from solocron.stores.service import StoreService
from solocron.stores.table import StoreTable
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
from solocron.web.sources import Sources

_ALERTS_WITHIN_S = 2.0


@dataclass(frozen=True)
class Parts:
    """Everything a service is made of, wired but not started."""

    clock: Clock
    database: Database
    ledger: RunLedger
    stores: StoreService
    notifier: Notifier
    locks: LockManager
    runner: Runner
    board: Board
    fanout: Fanout
    hub: Hub
    relay: Relay
    deliveries: Deliveries
    channels: Channels
    retention: Retention
    alerts: Alerts
    pings: Pings
    connections: Connections
    sockets: Sockets
    events: Events
    authenticator: Authenticator
    api: StoresApi


Stores = StoreTable | StoreRepository


def build(settings: Settings, clock: Clock, stores: Stores | None = None) -> Parts:
    """Wire the parts; `stores` says where those are kept, if not where the settings do. Opens
    nothing; raises ConfigError for a setting that cannot work."""
    owner = f"{socket.gethostname()}:{os.getpid()}"
    lease_ms = int(settings.lease * 1000)
    database = Database(settings.database_url.get_secret_value(), idle_ms=lease_ms)
    locks = LockManager(
        settings.redis, clock=clock, lease_ms=lease_ms, deadline_s=settings.redis_deadline,
        max_skew_ms=int(settings.max_skew * 1000), margin_ms=int(settings.reserve * 1000),
    )  # fmt: skip
    ledger, tracing = RunLedger(database), tracer()
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
    fanout = Fanout(
        settings.redis, environment=settings.environment, clock=clock,
        deadline_s=settings.redis_deadline,
    )  # fmt: skip
    stores = settings.store_table if stores is None else stores
    repository = stores.on(database) if isinstance(stores, StoreTable) else stores
    outbox = Outbox(database, repository.get_many)
    deliveries = Deliveries(database, repository.get_many)
    hub = Hub(outbox, fanout)
    channels = Channels(
        deliveries, channels_of(settings.channel_urls), owner=owner, clock=clock,
        policy=Policy(attempts=settings.notify_attempts),
    )  # fmt: skip
    relay = Relay(outbox, fanout, hub, clock, committed=channels.wake, tracer=tracing)
    service = StoreService(repository, database, channels.ids)
    runner.notify = notifier = Notifier(service, database, relay, clock)
    retention = Retention(
        History(database), fanout, clock, channels=channels.ids, kept_s=settings.history,
        runs_kept_s=settings.catch_up,
    )  # fmt: skip
    alerts = _alerts(settings, locks, database, runner, board, deliveries, clock)
    return Parts(
        clock=clock, database=database, ledger=ledger, stores=service,
        notifier=notifier, locks=locks,
        runner=runner, board=board, fanout=fanout, hub=hub, relay=relay, deliveries=deliveries,
        channels=channels, retention=retention, alerts=alerts, pings=Pings(runner),
        **_web(settings, hub, service, relay, clock),
    )  # fmt: skip


def _web(
    settings: Settings, hub: Hub, stores: StoreService, relay: Relay, clock: Clock
) -> dict[str, Any]:
    """The parts that clients meet, by their names in Parts."""
    authenticator, origins = _authenticator(settings), settings.allowed_origins
    connections = Connections(
        limit=settings.max_connections, per_token=settings.max_connections_per_token,
        per_address=settings.max_connections_per_address,
    )  # fmt: skip
    beat_s = settings.heartbeat
    return {
        "authenticator": authenticator,
        "connections": connections,
        "sockets": Sockets(
            hub, authenticator, connections, origins=origins, heartbeat_s=beat_s
        ),
        "events": Events(
            hub, authenticator, connections, origins=origins, heartbeat_s=beat_s
        ),
        "api": StoresApi(
            stores, authenticator=authenticator, origins=origins, publish=relay.publish,
            clock=clock,
        ),
    }  # fmt: skip


def _board(settings: Settings, runner: Runner, locks: LockManager, clock: Clock) -> Board:
    link = make_link(settings.redis, clock=clock, deadline_s=settings.redis_deadline)
    return Board(
        link, runner.journal, clock=clock, environment=settings.environment,
        sweep_s=settings.sweep, locks_up=lambda: locks.link.is_up,
    )  # fmt: skip


def _alerts(
    settings: Settings, locks: LockManager, database: Database, runner: Runner, board: Board,
    deliveries: Deliveries, clock: Clock,
) -> Alerts:  # fmt: skip
    link = make_link(settings.redis, clock=clock, deadline_s=settings.redis_deadline)
    look = Look(
        locks=locks, database=database, runner=runner, board=board, deliveries=deliveries,
        clock=clock, ask_s=min(settings.sweep, settings.alert_after),
        silent_ms=settings.silent_ms, counts_dead=bool(settings.channel_urls),
    )  # fmt: skip
    fleet = Fleet(AlertTable(database), SharedAlerts(link, settings.environment))
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
        database=parts.database, connections=parts.connections, hub=parts.hub, relay=parts.relay,
        channels=parts.channels, watchdog=watchdog, running=running, paused=paused,
        alarms=lambda: [each.id for each in parts.alerts.current()],
        build=(__version__, platform.python_version()),
    )  # fmt: skip
    return Metrics(sources, parts.authenticator)


def fleet_of(settings: Settings, parts: Parts, jobs: Mapping[str, Job]) -> FleetView:
    """What operators see of a service with these parts."""

    async def alerts() -> Sequence[Alert]:
        try:
            async with asyncio.timeout(_ALERTS_WITHIN_S):
                return await parts.alerts.fleet()
        except TimeoutError:
            return parts.alerts.current()

    return FleetView(
        jobs=jobs, locks=parts.locks, past=Past(parts.database), board=parts.board,
        channels=parts.channels, stores=parts.stores, clock=parts.clock,
        silent_ms=settings.silent_ms, alerts=alerts,
    )  # fmt: skip


def _authenticator(settings: Settings) -> Authenticator:
    secret = settings.auth_secret.get_secret_value() if settings.auth_secret else None
    return Authenticator(
        clock=SystemClock(), secret=secret, jwks_file=settings.auth_jwks,
        audience=settings.auth_audience,
    )  # fmt: skip


def store_jobs(settings: Settings, parts: Parts) -> Sequence[Job]:
    """The two built-in jobs."""
    bodies: list[tuple[str, type[AutoClose] | type[OpenReminder]]] = [
        ("store_auto_close", AutoClose), ("store_open_reminder", OpenReminder),
    ]  # fmt: skip
    return [
        Job(
            name=field.replace("_", "-"),
            calendar=Calendar(getattr(settings, f"{field}_schedule"), settings.timezone),
            body=kind(parts.stores, parts.clock, parts.relay.publish, batch=settings.batch),
            ttl_ms=int(getattr(settings, f"{field}_ttl") * 1000),
            ping=url.get_secret_value() if (url := getattr(settings, f"{field}_ping")) else "",
            **policies(settings),
        )
        for field, kind in bodies
    ]


def policies(settings: Settings) -> dict[str, Any]:
    """What a deployment sets for all its jobs."""
    return {
        "environment": settings.environment,
        "catch_up_ms": int(settings.catch_up * 1000),
        # Without Redis each older server runs each tick: none is needed here.
        "on_redis_down": "skip" if settings.reserve else settings.on_redis_down,
    }
