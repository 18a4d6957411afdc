"""Names and limits: lock keys, their companion keys, and times to live."""

from __future__ import annotations

import re
from typing import NamedTuple

from solocron.errors import ConfigError

MAX_TTL_MS = 7 * 24 * 3600 * 1000
PAUSE_MS = 7 * 24 * 3600 * 1000
LONGEST_PAUSE_MS = 30 * 24 * 3600 * 1000
MAX_KEY = 200
_KEY = re.compile(rf"[^{{}}\s]{{1,{MAX_KEY}}}")


class Companions(NamedTuple):
    """The keys beside a lock, in the same cluster slot, each with its own TTL.

    `alive`: the owner's sign of life; `settled`: the newest settled tick; `paused`: set by an
    operator; `looked`: a server looked into the ledger lately; `older`: the newest tick that an
    older server was found running; `reserved`: since when no older server could get the lock.
    """

    alive: str
    settled: str
    paused: str
    looked: str
    older: str
    reserved: str


def companions(key: str) -> Companions:
    """The companion keys of the lock `key`."""
    slot = f"{{{key}}}:"
    return Companions(
        slot + "alive", slot + "settled", slot + "paused", slot + "looked", slot + "older",
        slot + "reserved",
    )  # fmt: skip


def lock_key(job: str, environment: str) -> str:
    """`cron:<job>` or `cron:<job>:<environment>`."""
    return f"cron:{job}:{environment}" if environment else f"cron:{job}"


def fleet_key(environment: str, name: str) -> str:
    """A key, or a part of channels' names, that all servers of an environment share."""
    return f"solocron:{environment}:{name}".replace("::", ":")


def check_ttl(ttl_ms: float, name: str = "ttl_ms", *, at_most_ms: int = MAX_TTL_MS) -> int:
    """`ttl_ms` as a whole number of ms; ConfigError (a ValueError) for anything absurd."""
    if isinstance(ttl_ms, bool) or not isinstance(ttl_ms, int | float):
        raise ConfigError(f"{name} is {ttl_ms!r}: give a number of ms")
    if not 1 <= ttl_ms <= at_most_ms:  # false for NaN too
        raise ConfigError(
            f"{name} is {ttl_ms!r}: give 1 to {at_most_ms} ms ({at_most_ms // 86_400_000} days)"
        )
    return int(ttl_ms)


def check_key(key: str) -> str:
    """`key` if it is a usable lock key, else ConfigError."""
    if _KEY.fullmatch(key) is None:
        raise ConfigError(
            f"lock key {key[:MAX_KEY]!r}: give 1 to {MAX_KEY} characters without spaces or braces"
        )
    return key
