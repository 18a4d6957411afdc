"""Measures a deployment for `solocron doctor`: asks Redis, the database and the servers' board,
each within a time limit, and changes nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from solocron.cli.findings import (
    MOST_DEAD,
    DatabaseFacts,
    Finding,
    RedisFacts,
    of_database,
    of_deliveries,
    of_redis,
)
from solocron.cli.fitting import of_job, of_runs, of_settings, of_workers
from solocron.cron.board import Presence
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.limits import LIMITS
from solocron.locks.cluster import make_link
from solocron.locks.link import RedisLink
from solocron.service import Solocron
from solocron.storage.engine import Database

_ASKED = 20
_WITHIN_S = 10.0
_RUNS = 100
_CONFIG = ("save", "min-replicas-to-write")
_ORDER = ("error", "warning", "note")


async def examine(cron: Solocron) -> dict[str, Any]:
    """Whether Redis and the database are up, and the findings, the worst first."""
    redis, workers, up_s = await _redis(cron)
    up = up_s is not None
    jobs = {**cron.inquiry.others(workers), **cron.jobs}
    database, rows, state = await _database(cron, list(jobs), workers)
    now_ms = cron.parts.clock.now_ms()
    found = [*redis, *database, *of_settings(cron.settings)]
    if up_s is not None:
        silent_ms = cron.inquiry.silent_ms
        found += of_workers(workers, list(jobs.values()), now_ms, silent_ms, up_s)
    for name, job in jobs.items():
        ours, ran = name in cron.jobs, rows.get(name, ())
        found += of_runs(name, ran)
        found += of_job(job, _durations(ran), cron.settings, now_ms, ttl_known=ours)
    found.sort(key=lambda each: _ORDER.index(each.severity))
    return {
        "redis": "up" if up else "down",
        "database": state,
        "findings": [asdict(each) for each in found],
    }


# -- Redis -------------------------------------------------------------------------------------


async def _redis(cron: Solocron) -> tuple[list[Finding], Sequence[Presence], float | None]:
    """What is wrong with it, the servers it knows, and for how long it has been up, as far as it
    says so (s); None: it is down."""
    settings = cron.settings
    link = make_link(settings.redis, clock=cron.parts.clock, deadline_s=settings.redis_deadline)
    found: list[Finding] = []
    up_s = math.inf
    try:
        async with asyncio.timeout(_WITHIN_S):
            servers = await link.servers()
            for number, each in enumerate(servers):
                name = f"{number + 1} of {len(servers)}" if len(servers) > 1 else ""
                facts = await _of_server(cron, each, name)
                up_s = min(up_s, float(facts.info.get("uptime_in_seconds", "inf")))
                found += of_redis(facts, settings)
            return found, await cron.parts.board.workers(), up_s
    except (LockUnavailable, TimeoutError) as error:
        text = str(error) or f"it gave no answer within {_WITHIN_S:g} s"
        remedy = "start it, or see REDIS_URL, its password and the network between"
        return [Finding("redis", "error", text, remedy)], (), None
    finally:
        await link.close()


async def _of_server(cron: Solocron, server: RedisLink, name: str) -> RedisFacts:
    clock, answers_ms = cron.parts.clock, []
    await server.call("TIME")  # the first one has to connect
    ahead_ms = 0.0
    for _ in range(_ASKED):
        sent_ms, began = clock.now_ms(), clock.monotonic()
        seconds, micros = await server.call("TIME")
        took_ms = (clock.monotonic() - began) * 1000
        answers_ms.append(took_ms)
        theirs_ms = int(seconds) * 1000 + int(micros) / 1000
        ahead_ms = clock.real_ms(sent_ms) + took_ms / 2 - theirs_ms
    info, denied = await _allowed(server, "INFO")
    config: dict[str, str] = {}
    for each in _CONFIG:
        reply, _ = await _allowed(server, "CONFIG", "GET", each)
        pairs = [_text(item) for item in reply or ()]
        config.update(zip(pairs[::2], pairs[1::2], strict=True))
    return RedisFacts(name, _fields(_text(info or b"")), config, denied, ahead_ms, answers_ms)


async def _allowed(server: RedisLink, *command: str) -> tuple[Any, str]:
    """The reply, or why there is none: a user may lack the right to ask."""
    try:
        return await server.call(*command), ""
    except LockUnavailable as error:
        if "NoPermission" in str(error) or "unknown command" in str(error):
            return None, str(error)
        raise


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _fields(info: str) -> dict[str, str]:
    pairs = [line.partition(":") for line in info.splitlines()]
    return {name: value for name, colon, value in pairs if colon}


# -- the database ------------------------------------------------------------------------------

Rows = Sequence[Mapping[str, Any]]  # of the ledger
Told = tuple[list[Finding], Mapping[str, Rows], str]


async def _database(cron: Solocron, jobs: Sequence[str], workers: Sequence[Presence]) -> Told:
    """What is wrong with it, the runs of each job, and whether it is up, down or none."""
    if cron.parts.stored is None:
        return await _no_database(cron, jobs)
    try:
        async with asyncio.timeout(_WITHIN_S):
            await cron.parts.database.check()
            facts, rows, dead = await _stored(cron, jobs)
    except (StorageUnavailable, TimeoutError) as error:
        text = str(error) or f"it gave no answer within {_WITHIN_S:g} s"
        remedy = "start it, or see DATABASE_URL and the network between"
        if "solocron migrate" in text:
            remedy = "solocron migrate"
        return [Finding("database", "error", text, remedy)], {}, "down"
    return [*of_database(facts, workers, cron.settings), *of_deliveries(dead)], rows, "up"


async def _no_database(cron: Solocron, jobs: Sequence[str]) -> Told:
    """Its limits, and the runs, which Redis keeps then: whose absence is told where it is asked."""
    limits = [Finding("database", "note", text, remedy) for text, remedy in LIMITS]
    try:
        async with asyncio.timeout(_WITHIN_S):
            return limits, await _rows(cron, jobs), "none"
    except (StorageUnavailable, TimeoutError):
        return limits, {}, "none"


async def _rows(cron: Solocron, jobs: Sequence[str]) -> Mapping[str, Rows]:
    return {name: await cron.parts.ledger.history(name, _RUNS) for name in jobs}


async def _stored(
    cron: Solocron, jobs: Sequence[str]
) -> tuple[DatabaseFacts, Mapping[str, Rows], int]:
    clock, ledger, database = cron.parts.clock, cron.parts.ledger, cron.parts.database
    answers_ms, ahead_ms = [], 0.0
    for _ in range(_ASKED):
        sent_ms, began = clock.now_ms(), clock.monotonic()
        theirs_ms = await ledger.clock_ms()
        took_ms = (clock.monotonic() - began) * 1000
        answers_ms.append(took_ms)
        ahead_ms = clock.real_ms(sent_ms) + took_ms / 2 - theirs_ms
    rows = await _rows(cron, jobs)
    dead = await cron.parts.deliveries.count_dead(MOST_DEAD)
    kind = unwritable = ""
    if database.dialect == "sqlite":
        unwritable = await _unwritable(database)
        url = cron.settings.database_url.get_secret_value()
        kind = await asyncio.to_thread(_file_system, make_url(url).database or "")
    return DatabaseFacts(database.dialect, answers_ms, ahead_ms, kind, unwritable), rows, dead


async def _unwritable(database: Database) -> str:
    """Why no transaction that writes can begin, within SQLite's time for that; '' if one can."""
    try:
        async with database.begin():
            return ""
    except StorageUnavailable as error:
        return str(error)


def _durations(rows: Rows) -> list[int]:
    """How long the runs took that succeeded, in ms."""
    return [
        row["duration_ms"]
        for row in rows
        if row["state"] == "succeeded" and row["duration_ms"] is not None
    ]


def _file_system(file: str) -> str:
    """The kind of file system a file is on; '' where the kernel does not say."""
    try:
        path, mounts = Path(file).resolve(), Path("/proc/mounts").read_text(errors="replace")
    except OSError:
        return ""
    found = [line.split(" ") for line in mounts.splitlines()]
    holding = [each for each in found if len(each) > 2 and path.is_relative_to(each[1])]
    return max(holding, key=lambda each: len(each[1]))[2] if holding else ""
