"""Cron jobs that run once, however many servers run them."""

from __future__ import annotations

from solocron.clock import Clock, SystemClock
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import (
    ConfigError,
    InvalidInput,
    LeaseLost,
    LockNotAcquired,
    LockUnavailable,
    SolocronError,
    StaleAttempt,
    StorageUnavailable,
)
from solocron.locks.lease import Lease
from solocron.locks.manager import LockManager
from solocron.service import Solocron
from solocron.settings import Settings
from solocron.version import __version__

__all__ = [
    "Calendar", "Clock", "ConfigError", "InvalidInput", "Job", "Lease", "LeaseLost", "LockManager",
    "LockNotAcquired", "LockUnavailable", "Run", "Settings", "Solocron", "SolocronError",
    "StaleAttempt", "StorageUnavailable", "SystemClock", "__version__",
]  # fmt: skip
