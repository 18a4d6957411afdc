"""What a service with a database has besides: stores, their notifications, and how those reach
people. Without one (`DATABASE_URL=none`) there is none of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.runner import Runner
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, StorageUnavailable
from solocron.notifications.channels import Channels, Policy
from solocron.notifications.fanout import Fanout
from solocron.notifications.hub import Hub
from solocron.notifications.relay import Relay
from solocron.notifications.retention import Retention
from solocron.notifications.senders import channels_of
from solocron.settings import NO_JOB, Settings
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.history import History
from solocron.storage.outbox import Outbox
from solocron.stores.auto_close import AutoClose
from solocron.stores.notifier import Notifier
from solocron.stores.open_reminder import OpenReminder
from solocron.stores.repository import StoreRepository
from solocron.stores.service import StoreService
from solocron.stores.table import StoreTable
from solocron.tracing import Tracer
from solocron.web.api import StoresApi
from solocron.web.auth import Authenticator
from solocron.web.connections import Connections
from solocron.web.events import Events
from solocron.web.socket import Sockets

log = logging.getLogger("solocron")

Stores = StoreTable | StoreRepository

_MIGRATE_RETRY_S = 2.0


@dataclass(frozen=True)
class Stored:
    """These parts, wired but not started."""

    database: Database
    stores: StoreService
    notifier: Notifier
    fanout: Fanout
    hub: Hub
    relay: Relay
    deliveries: Deliveries
    channels: Channels
    retention: Retention
    sockets: Sockets
    events: Events
    api: StoresApi

    def work(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What is to be run as tasks, until cancelled."""
        return (
            self._migrated(),
            self.fanout.run(self.hub.deliver, self.hub.resync, self.hub.nudged),
            self.hub.run(),
            self.relay.run(),
            self.channels.run(),
            self.retention.run(),
        )

    async def check(self) -> None:
        """Raise ConfigError if the stores cannot be used, as far as that can be found out now."""
        with suppress(StorageUnavailable):  # _migrated asks again
            await self.stores.repository.check()

    async def _migrated(self) -> None:
        """Bring SQLite's schema up to date, or wait until somebody migrated PostgreSQL."""
        database, said = self.database, False
        while True:
            try:
                if database.dialect == "sqlite":
                    await database.migrate()
                await database.check()
                await self.stores.repository.check()
                return
            except ConfigError as error:
                log.error("The stores cannot be used: %s", error)
                return
            except StorageUnavailable as error:
                if not said and not database.is_lost:
                    log.warning("The database is not ready, runs wait for it: %s", error)
                    said = True
            await asyncio.sleep(_MIGRATE_RETRY_S)


def build_stored(
    settings: Settings, stores: Stores | None, database: Database, runner: Runner, *,
    connections: Connections, authenticator: Authenticator, clock: Clock, owner: str,
    tracing: Tracer,
) -> Stored:  # fmt: skip
    """Wire these parts over the database; `stores` says where those are kept, if not where the
    settings do."""
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
    origins, beat_s = settings.allowed_origins, settings.heartbeat
    return Stored(
        database=database, stores=service, notifier=notifier, fanout=fanout, hub=hub, relay=relay,
        deliveries=deliveries, channels=channels, retention=retention,
        sockets=Sockets(hub, authenticator, connections, origins=origins, heartbeat_s=beat_s),
        events=Events(hub, authenticator, connections, origins=origins, heartbeat_s=beat_s),
        api=StoresApi(
            service, authenticator=authenticator, origins=origins,
            publish=relay.publish, clock=clock,
        ),
    )  # fmt: skip


def store_jobs(
    settings: Settings, stored: Stored, clock: Clock, policies: dict[str, Any]
) -> Sequence[Job]:
    """The two built-in jobs, but those whose schedule is `off`."""
    bodies: list[tuple[str, type[AutoClose] | type[OpenReminder]]] = [
        ("store_auto_close", AutoClose), ("store_open_reminder", OpenReminder),
    ]  # fmt: skip
    return [
        Job(
            name=field.replace("_", "-"),
            calendar=Calendar(getattr(settings, f"{field}_schedule"), settings.timezone),
            body=kind(stored.stores, clock, stored.relay.publish, batch=settings.batch),
            ttl_ms=int(getattr(settings, f"{field}_ttl") * 1000),
            ping=url.get_secret_value() if (url := getattr(settings, f"{field}_ping")) else "",
            reserve=True,
            **policies,
        )
        for field, kind in bodies
        if getattr(settings, f"{field}_schedule") != NO_JOB
    ]
