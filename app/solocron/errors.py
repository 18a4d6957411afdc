"""The errors a user of solocron can meet. Few, and each message says what to do."""

from __future__ import annotations


class SolocronError(Exception):
    """Base of every error raised on purpose. The CLI prints it without a traceback."""


class ConfigError(SolocronError, ValueError):
    """A setting, job or argument is wrong. The message names it, its value and the remedy."""


class NoDatabase(ConfigError):
    """What was asked for needs a database, and DATABASE_URL is none."""


class UnknownJob(ConfigError):
    """There is no job of that name."""


class InvalidInput(SolocronError, ValueError):
    """Data from outside (a row, a frame, a request body) is wrong: field, value, remedy."""


class LockUnavailable(SolocronError):
    """Redis gave no usable answer within the deadline. It never means "held"."""


class LockReadOnly(LockUnavailable):
    """Redis answered but refuses writes (READONLY, MISCONF, OOM, LOADING, CLUSTERDOWN)."""


class LockNotAcquired(SolocronError):
    """Another owner holds the lock."""


class LeaseLost(SolocronError):
    """The lease ended (deadline passed, or another owner took the lock): stop all effects."""


class StaleAttempt(LeaseLost):
    """The fence: a newer attempt of this run exists, so this transaction was refused."""


class StorageUnavailable(SolocronError):
    """The database gave no usable answer. Nothing was written, or the outcome is unclear."""
