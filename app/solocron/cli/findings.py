"""What is wrong with a deployment, from what was measured of it, and what to do about it. Pure.

An `error` keeps jobs from running as they should, a `warning` will under some fault, a `note` is
worth knowing and asks for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from solocron.cron.board import Presence
from solocron.settings import Settings

Severity = Literal["error", "warning", "note"]

_OLDEST = (6, 2)
_NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
)
SKEW_MS = 1_000
_SLOW_DATABASE_MS = 100
MOST_DEAD = 1_000


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing; `about` is where."""

    about: str
    severity: Severity
    text: str
    remedy: str


@dataclass(frozen=True)
class RedisFacts:
    """One Redis server: what INFO and CONFIG GET say ({}: denied, with the reason in `denied`),
    by how much this machine's clock is ahead of its (ms), and how long answers took (ms)."""

    name: str
    info: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    denied: str = ""
    ahead_ms: float = 0.0
    answers_ms: Sequence[float] = ()


@dataclass(frozen=True)
class DatabaseFacts:
    """The database: how long answers took (ms), and of SQLite the kind of its file system ('': not
    known, or no SQLite), and why nothing can be written ('': it can)."""

    dialect: str
    answers_ms: Sequence[float] = ()
    ahead_ms: float = 0.0
    file_system: str = ""
    unwritable: str = ""


def p95(values: Sequence[float]) -> float:
    """What 95 % of the values are not above; there is at least one."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


# -- Redis -------------------------------------------------------------------------------------


def of_redis(facts: RedisFacts, settings: Settings) -> Iterator[Finding]:
    """What is wrong with a Redis server."""
    about, info = f"redis {facts.name}".strip(), facts.info
    if facts.denied:
        yield Finding(
            about,
            "note",
            f"its version, memory and persistence are not known: {facts.denied}",
            "let this user do so: ACL SETUSER ... +info +config|get",
        )
    version = info.get("redis_version", "")
    if version and _version(version) < _OLDEST:
        yield Finding(about, "error", f"it is Redis {version}", "use 6.2 or later")
    yield from _memory(about, info)
    yield from _persistence(about, facts, settings.has_database)
    yield from _replicas(about, facts, settings.has_database)
    yield from _skew(about, facts.ahead_ms, settings)
    limit_ms = settings.redis_deadline * 1000 / 4
    if facts.answers_ms and (took := p95(facts.answers_ms)) > limit_ms:
        yield Finding(
            about,
            "warning",
            f"it takes {took:.0f} ms to answer; after "
            f"{settings.redis_deadline:g} s it counts as down",
            "bring it nearer, see SLOWLOG, or raise SOLOCRON_REDIS_DEADLINE",
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(".")[:2] if each.isdigit())


def _memory(about: str, info: Mapping[str, str]) -> Iterator[Finding]:
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory", "0")
    if policy != "noeviction":
        limited = limit != "0"
        when = f"when its {limit} bytes are full" if limited else "once it has a maxmemory"
        yield Finding(
            about,
            "warning" if limited else "note",
            f"maxmemory-policy is {policy}: {when}, locks and pauses may be evicted",
            "CONFIG SET maxmemory-policy noeviction",
        )


def _persistence(about: str, facts: RedisFacts, ledger: bool) -> Iterator[Finding]:
    info, config = facts.info, facts.config
    for name, what in (("rdb_last_bgsave_status", "save"), ("aof_last_write_status", "write")):
        if info.get(name, "ok") != "ok":
            yield Finding(
                about,
                "error",
                f"its last {what} to disk failed ({name}): it may refuse writes (MISCONF)",
                "see its log and its disk",
            )
    if info.get("aof_enabled") == "0" and config.get("save") == "":
        yield Finding(
            about,
            "note",
            "it keeps nothing over a restart: pauses end with it (the ledger knows what was run)"
            if ledger
            else "it keeps nothing over a restart: pauses and what is known of runs end with it, "
            "and a tick may run twice",
            "CONFIG SET appendonly yes",
        )


def _replicas(about: str, facts: RedisFacts, ledger: bool) -> Iterator[Finding]:
    info, config = facts.info, facts.config
    if info.get("role") == "slave":
        yield Finding(
            about,
            "error",
            "it is a replica, which takes no locks",
            "name its master, or the sentinels, in REDIS_URL",
        )
    elif info.get("connected_slaves") == "0":
        yield Finding(
            about,
            "note",
            "it has no replica: while it is away "
            + ("the database decides" if ledger else "each server decides for itself"),
            "nothing, or Sentinel or a cluster",
        )
    elif "connected_slaves" in info and config.get("min-replicas-to-write") == "0":
        yield Finding(
            about,
            "note",
            "cut off from its replicas it goes on granting locks, which "
            + ("only the ledger corrects" if ledger else "nothing corrects"),
            "CONFIG SET min-replicas-to-write 1",
        )


def _skew(about: str, ahead_ms: float, settings: Settings) -> Iterator[Finding]:
    if abs(ahead_ms) > SKEW_MS:
        too_far = ahead_ms > settings.max_skew * 1000
        way = "ahead of" if ahead_ms > 0 else "behind"
        effect = ": it runs no tick before its time there" if too_far else ""
        yield Finding(
            about,
            "error" if too_far else "warning",
            f"this machine's clock is {abs(ahead_ms) / 1000:.1f} s {way} it{effect}",
            "set both by NTP: timedatectl, chronyc tracking",
        )


# -- deliveries --------------------------------------------------------------------------------


def of_deliveries(dead: int) -> Iterator[Finding]:
    """Whether there are dead letters: so many, counted up to `MOST_DEAD`."""
    if dead:
        yield Finding(
            "deliveries",
            "warning",
            f"{dead}{' or more' if dead >= MOST_DEAD else ''} emails, SMS and the like were given "
            "up",
            "see why: solocron deadletters; once that is mended: solocron deadletters --retry",
        )


# -- the database ------------------------------------------------------------------------------


def of_database(
    facts: DatabaseFacts, workers: Sequence[Presence], settings: Settings
) -> Iterator[Finding]:
    """What is wrong with the database."""
    yield from _skew("database", facts.ahead_ms, settings)
    if facts.unwritable:
        yield Finding(
            "database",
            "error",
            f"nothing can be written, so runs wait: {facts.unwritable}",
            "end the process that holds its write lock (`fuser -v` names those that have the file "
            "open), and keep other writers' transactions short",
        )
    if facts.answers_ms and (took := p95(facts.answers_ms)) > _SLOW_DATABASE_MS:
        yield Finding(
            "database",
            "warning",
            f"it takes {took:.0f} ms to answer (p95 of {len(facts.answers_ms)})",
            "bring it nearer, or see what it is busy with",
        )
    if facts.file_system in _NETWORK:
        yield Finding(
            "database",
            "error",
            f"the SQLite file is on {facts.file_system}, where its locks do not hold",
            "use PostgreSQL, or a local disk",
        )
    hosts = sorted({each.host for each in workers})
    if facts.dialect == "sqlite" and len(hosts) > 1:
        yield Finding(
            "database",
            "error",
            f"servers on {', '.join(hosts[:10])} each have an SQLite "
            "file of their own: without Redis each would run every tick",
            "use one PostgreSQL for all: DATABASE_URL",
        )
