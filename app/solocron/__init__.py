"""Cron jobs that run once, however many servers run them.

The names below are imported when they are first asked for: `import solocron` costs nothing, and a
host that wants the locks alone does not wait for the web server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from solocron.version import __version__

if TYPE_CHECKING:
    from solocron.clock import Clock, SystemClock
    from solocron.cron.job import Job
    from solocron.cron.outcome import Outcome
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
    from solocron.locks.lock import Lock
    from solocron.locks.manager import LockManager
    from solocron.service import Solocron
    from solocron.settings import Settings
    from solocron.stores.model import Store
    from solocron.stores.repository import StoreRepository
    from solocron.stores.table import StoreTable

# What those imports say, for __getattr__; a test holds the two against each other.
_MODULES = {
    "solocron.clock": ("Clock", "SystemClock"),
    "solocron.cron.job": ("Job",),
    "solocron.cron.outcome": ("Outcome",),
    "solocron.cron.run": ("Run",),
    "solocron.cron.ticks": ("Calendar",),
    "solocron.errors": (
        "ConfigError", "InvalidInput", "LeaseLost", "LockNotAcquired", "LockUnavailable",
        "SolocronError", "StaleAttempt", "StorageUnavailable",
    ),
    "solocron.locks.lease": ("Lease",),
    "solocron.locks.lock": ("Lock",),
    "solocron.locks.manager": ("LockManager",),
    "solocron.service": ("Solocron",),
    "solocron.settings": ("Settings",),
    "solocron.stores.model": ("Store",),
    "solocron.stores.repository": ("StoreRepository",),
    "solocron.stores.table": ("StoreTable",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Calendar", "Clock", "ConfigError", "InvalidInput", "Job", "Lease", "LeaseLost", "Lock",
    "LockManager", "LockNotAcquired", "LockUnavailable", "Outcome", "Run", "Settings", "Solocron",
    "SolocronError", "StaleAttempt", "StorageUnavailable", "Store", "StoreRepository", "StoreTable",
    "SystemClock", "__version__",
]  # fmt: skip


if not TYPE_CHECKING:  # with it, type checkers would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value  # asked for once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
