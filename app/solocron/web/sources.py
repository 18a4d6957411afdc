"""What the metrics of a worker are read from: its parts, as they live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.journal import Journal
from solocron.locks.manager import LockManager
from solocron.notifications.channels import Channels
from solocron.notifications.hub import Hub
from solocron.notifications.relay import Relay
from solocron.storage.engine import Database
from solocron.watchdog import Watchdog
from solocron.web.connections import Connections


@dataclass(frozen=True, kw_only=True)
class StoredSources:
    """Those that only a service with a database has."""

    database: Database
    hub: Hub
    relay: Relay
    channels: Channels


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The parts. `running` is how many ticks are being tried or run, `paused` the paused jobs as
    of the last sweep, `alarms` the raised alerts, each with its job or ''; `build` the release and
    the Python it runs on."""

    clock: Clock
    jobs: Mapping[str, Job]
    journal: Journal
    locks: LockManager
    stored: StoredSources | None
    connections: Connections
    watchdog: Watchdog
    running: Callable[[], int]
    paused: Callable[[], Collection[str]]
    alarms: Callable[[], Iterable[tuple[str, str]]]
    build: tuple[str, str]
