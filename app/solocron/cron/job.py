"""What a job is: a name, a calendar, a body, and the policies around them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.cron.values import default_params
from solocron.errors import ConfigError
from solocron.locks.keys import MAX_TTL_MS, check_ttl, lock_key

Body = Callable[[Run], Any]  # a coroutine function, or a plain one, which runs in a thread

MAX_PING = 1000
MAX_BACKOFF_MS = 300_000
_WEEK_MS = 7 * 24 * 3_600_000
_LONGEST_JITTER_MS = 3_600_000
_SHORTEST_LEASE_MS, _LONGEST_LEASE_MS = 500, 3_600_000
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
    `lease_ms`: for how long an owner is trusted without a sign of life (0: as the deployment has
    it); renewed at a third of it.
    `catch_up`: of the ticks that nobody ran, which are run late: the `latest`, `all` of them, the
    oldest first, or none (`skip`). `catch_up_ms`: how old they may be.
    `overlap`: what becomes of a tick that comes due while the previous one runs: `skip` it, or
    `queue` it.
    `on_redis_down`: `run` (the ledger arbitrates) or `skip`.
    `reserve`: the JavaScript version's servers have it, too: while SOLOCRON_RESERVE says that there
    are some, its lock is kept from them.
    `jitter_ms`: its runs begin up to so much after their ticks, all by one delay that is made of
    the job's name: jobs of one schedule do not begin at once, and all servers agree.
    `attempts`: how often a run is tried; `backoff_ms` before the second, doubling up to 5 minutes.
    `expected_ms`: a run that takes longer is an alert (0: only one that takes longer than its TTL).
    `params`: its parameters (JSON values) and what they are unless a run by hand says otherwise.
    `ping`: a URL that is told of the begin and the end of each run ('': none); it is a secret.
    """

    name: str
    calendar: Calendar
    body: Body
    ttl_ms: int = 300_000
    environment: str = ""
    lease_ms: int = 0
    catch_up: Literal["latest", "all", "skip"] = "latest"
    catch_up_ms: int = 3_600_000
    jitter_ms: int = 0
    overlap: Literal["skip", "queue"] = "skip"
    on_redis_down: Literal["run", "skip"] = "run"
    reserve: bool = False
    attempts: int = 3
    backoff_ms: int = 1_000
    expected_ms: int = 0
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    ping: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"job name {self.name[:100]!r}: use 1 to 100 of a-z, 0-9, '.', '_' and '-'"
            )
        check_ttl(self.ttl_ms, f"ttl of job {self.name!r}")
        self._check_word("overlap", "skip", "queue")
        self._check_word("on_redis_down", "run", "skip")
        self._check_word("catch_up", "latest", "all", "skip")
        if self.overlap == "queue" and self.catch_up == "skip":
            raise ConfigError(
                f"catch_up of job {self.name!r} is 'skip' and its overlap 'queue': a tick that "
                "waits for the one before is late; give 'latest' or 'all', or let overlap be 'skip'"
            )
        if isinstance(self.attempts, bool) or self.attempts not in range(1, 101):
            raise ConfigError(f"attempts of job {self.name!r} is {self.attempts!r}: give 1 to 100")
        if self.lease_ms:
            self._check_ms("lease", min(_LONGEST_LEASE_MS, self.ttl_ms), least=_SHORTEST_LEASE_MS)
        self._check_ms("catch_up", _WEEK_MS)
        self._check_ms("expected", MAX_TTL_MS)
        self._check_ms("jitter", _LONGEST_JITTER_MS)
        self._check_ms("backoff", MAX_BACKOFF_MS)
        default_params(self.name, self.params)
        check_ping(self.ping, f"ping of job {self.name!r}")

    def _check_word(self, option: str, *words: str) -> None:
        if (value := getattr(self, option)) not in words:
            raise ConfigError(
                f"{option} of job {self.name!r} is {str(value)[:40]!r}: give one of "
                + ", ".join(map(repr, words))
            )

    def _check_ms(self, option: str, most: int, least: int = 0) -> None:
        if not least <= (ms := getattr(self, f"{option}_ms")) <= most:
            called = "catch_up_window" if option == "catch_up" else option
            beyond = " (its ttl)" if option == "lease" and most == self.ttl_ms else ""
            raise ConfigError(
                f"{called} of job {self.name!r} is {ms / 1000:g} s: give {least / 1000:g} to "
                f"{most / 1000:g} s{beyond}"
            )

    @cached_property
    def lock_key(self) -> str:
        """`cron:<job>` or `cron:<job>:<environment>`."""
        return lock_key(self.name, self.environment)

    @cached_property
    def delay_ms(self) -> int:
        """How long after a tick its run begins: by `jitter_ms` and the name alone."""
        if not self.jitter_ms:
            return 0
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % self.jitter_ms

    def runs_without_redis(self, margin_ms: int) -> bool:
        """Whether the ledger decides while Redis is away. Not while there may be older servers with
        it (`margin_ms`): each of them runs each tick then, so that none is needed here."""
        return self.on_redis_down == "run" and not (self.reserve and margin_ms)

    @property
    def every(self) -> bool:
        """Whether each tick of the catch-up window is run, not only the newest."""
        return self.overlap == "queue" or self.catch_up == "all"

    def latest_due(self, now_ms: float) -> int | None:
        """The newest tick whose run may begin; None if there has been none for years."""
        return self.calendar.latest_at(now_ms - self.delay_ms)

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
