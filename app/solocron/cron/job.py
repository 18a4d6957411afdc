"""What a job is: a name, a calendar, a body, and the policies around them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError
from solocron.locks.keys import MAX_TTL_MS, check_ttl, lock_key

Body = Callable[[Run], Awaitable[Mapping[str, int] | None]]

MAX_PING = 1000
NAME_PATTERN = "[a-z0-9][a-z0-9._-]{0,99}"
_NAME = re.compile(NAME_PATTERN)


def check_ping(url: str, what: str = "") -> None:
    """Raise ConfigError, which does not show it, unless the URL can be pinged ('': none)."""
    try:
        parsed = urlsplit(url)
        usable = parsed.scheme in ("http", "https") and parsed.hostname and parsed.port != 0
    except ValueError:
        usable = False
    if url and (not usable or len(url) > MAX_PING or not url.isprintable() or " " in url):
        raise ConfigError(
            f"{what}: give an http:// or https:// URL of at most {MAX_PING} characters"
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job. Times in ms. Raises ConfigError for a value it cannot work with.

    `ttl_ms`: life of the lock key (the spec's TTL), renewed while its owner lives.
    `catch_up_ms`: how old a tick nobody ran may be and still be run late.
    `overlap`: what becomes of a tick that comes due while the previous one runs: `skip` it, or
    `queue` it.
    `on_redis_down`: `run` (the ledger arbitrates) or `skip`.
    `attempts`: how often a run is tried; `backoff_ms` before the second, doubling up to 5 minutes.
    `expected_ms`: a run that takes longer is an alert (0: only one that takes longer than its TTL).
    `ping`: a URL that is told of the begin and the end of each run ('': none); it is a secret.
    """

    name: str
    calendar: Calendar
    body: Body
    ttl_ms: int = 300_000
    environment: str = ""
    catch_up_ms: int = 3_600_000
    overlap: Literal["skip", "queue"] = "skip"
    on_redis_down: Literal["run", "skip"] = "run"
    attempts: int = 3
    backoff_ms: int = 1_000
    expected_ms: int = 0
    ping: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"job name {self.name[:100]!r}: use 1 to 100 of a-z, 0-9, '.', '_' and '-'"
            )
        check_ttl(self.ttl_ms, f"ttl of job {self.name!r}")
        if self.overlap not in ("skip", "queue"):
            raise ConfigError(f"overlap of job {self.name!r} is {self.overlap!r}: skip or queue")
        if self.on_redis_down not in ("run", "skip"):
            raise ConfigError(
                f"on_redis_down of job {self.name!r} is {self.on_redis_down!r}: run or skip"
            )
        if not 1 <= self.attempts <= 100:
            raise ConfigError(f"attempts of job {self.name!r} is {self.attempts}: give 1 to 100")
        if not 0 <= self.catch_up_ms <= 7 * 24 * 3_600_000:
            raise ConfigError(
                f"catch-up of job {self.name!r} is {self.catch_up_ms} ms: 0 to 7 days"
            )

        if not 0 <= self.expected_ms <= MAX_TTL_MS:
            raise ConfigError(
                f"expected duration of job {self.name!r} is {self.expected_ms} ms: 0 to 7 days"
            )
        check_ping(self.ping, f"ping of job {self.name!r}")

    @property
    def lock_key(self) -> str:
        """`cron:<job>` or `cron:<job>:<environment>`."""
        return lock_key(self.name, self.environment)

    @property
    def title(self) -> str:
        """The name as log lines say it: `store auto-close`, `store open reminder`."""
        known = {
            "store-auto-close": "store auto-close",
            "store-open-reminder": "store open reminder",
        }
        return known.get(self.name, self.name)

    @property
    def fingerprint(self) -> str:
        """What all servers must agree on: expression and zone."""
        return f"{self.calendar.expression} {self.calendar.zone}"
