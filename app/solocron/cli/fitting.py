"""What is wrong with the servers, the settings and the jobs' last runs. Pure; see `findings`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from solocron.cli.findings import SKEW_MS, Finding, p95
from solocron.cron.attempts import CANCELLED
from solocron.cron.board import Presence
from solocron.cron.explain import schedules_that_differ
from solocron.cron.job import Job
from solocron.cron.silence import SEE_WHY, is_silent, not_replaced
from solocron.cron.ticks import Calendar
from solocron.settings import Settings

_LAG_MS = 500
_YEAR_MS = 366 * 86_400_000
_ENOUGH_RUNS = 20  # to say that less would do
_PLAIN_TTL_S = 600
_FEW_RUNS = 5  # of fewer, a p95 says nothing
_STARTING_MS = 2_000  # the first word of a server, before it has reached anything


# -- the servers -------------------------------------------------------------------------------


def of_workers(
    workers: Sequence[Presence], jobs: Sequence[Job], now_ms: float, silent_ms: float,
    redis_up_s: float = math.inf,
) -> Iterator[Finding]:  # fmt: skip
    """What is wrong with the servers, as they tell of themselves, in a Redis that was started
    `redis_up_s` ago."""
    silent = {each.worker for each in workers if is_silent(each, now_ms, silent_ms)}
    alive = [each for each in workers if each.worker not in silent]
    if not workers and redis_up_s * 1000 < silent_ms:
        yield Finding(
            "servers",
            "warning",
            f"Redis was started {redis_up_s:.0f} s ago and knows no server yet",
            f"ask again in {silent_ms / 1000 - redis_up_s:.0f} s",
        )
    elif not alive:
        yield Finding("servers", "error", "none is up: nothing runs", "start some: solocron serve")
    elif len(alive) == 1:
        yield Finding(
            "servers",
            "note",
            f"only {alive[0].worker} is up: nobody takes over from it",
            "start another, on another machine",
        )
    yield from _of_silent(workers, silent)
    versions = sorted({each.version for each in alive})
    if len(versions) > 1:
        yield Finding(
            "servers",
            "warning",
            f"they are of releases {', '.join(versions[:10])}",
            "finish the deployment: the same release on all",
        )
    for job in jobs:
        for text, remedy in schedules_that_differ(job, alive):
            yield Finding(job.name, "error", text, remedy)
    for each in alive:
        yield from _of_worker(each)


def _of_silent(workers: Sequence[Presence], silent: Collection[str]) -> Iterator[Finding]:
    """Servers that went without a word: that is only a note once another was started instead."""
    missing = not_replaced(workers, silent)
    for each in workers:
        if each.worker not in silent:
            continue
        seen = datetime.fromtimestamp(each.seen_ms / 1000, UTC).isoformat(timespec="seconds")
        text = f"it has been silent since {seen}, and did not stop by itself"
        if each in missing:
            remedy = f"{SEE_WHY}, and start it, or another in its place"
            yield Finding(each.worker, "warning", f"{text}; none was started in its place", remedy)
        else:
            yield Finding(each.worker, "note", f"{text}; it was replaced", "its log says why")


def _of_worker(worker: Presence) -> Iterator[Finding]:
    if worker.seen_ms < worker.started_ms + _STARTING_MS:
        return
    for name in ("redis", "database"):
        if getattr(worker, name) == "down":
            yield Finding(
                worker.worker,
                "warning",
                f"it cannot reach the {name.capitalize()} that it is to use",
                "its network, address and password",
            )
    if abs(worker.skew_ms) > SKEW_MS:
        yield Finding(
            worker.worker,
            "warning",
            f"its clock is {abs(worker.skew_ms) / 1000:.1f} s "
            f"{'ahead of' if worker.skew_ms > 0 else 'behind'} Redis's",
            "set both by NTP: timedatectl, chronyc tracking",
        )
    if worker.loop_lag_ms > _LAG_MS:
        yield Finding(
            worker.worker,
            "warning",
            f"its event loop is {worker.loop_lag_ms} ms late",
            "its log names the code that blocks: put that into a thread",
        )


# -- settings ----------------------------------------------------------------------------------


def of_settings(settings: Settings) -> Iterator[Finding]:
    """Times that do not fit each other."""
    lease, sweep, deadline = settings.lease, settings.sweep, settings.redis_deadline
    if sweep > lease:
        yield Finding(
            "settings",
            "warning",
            f"SOLOCRON_SWEEP ({sweep:g} s) is over SOLOCRON_LEASE "
            f"({lease:g} s): a dead server's tick waits for both",
            "a sweep of lease / 6",
        )
    if lease < 3 * deadline:
        yield Finding(
            "settings",
            "warning",
            f"SOLOCRON_LEASE ({lease:g} s) is under three times "
            f"SOLOCRON_REDIS_DEADLINE ({deadline:g} s): one slow answer loses a lock",
            f"a lease of {6 * deadline:g} s or more",
        )
    if settings.catch_up < lease + sweep:
        yield Finding(
            "settings",
            "warning",
            f"SOLOCRON_CATCH_UP ({settings.catch_up:g} s) is under "
            f"lease + sweep ({lease + sweep:g} s): a dead server's tick is not taken over",
            f"{2 * (lease + sweep):g} or more",
        )


def of_runs(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether a job's last run failed, of its rows in the ledger, the newest first."""
    ended = [each for each in rows if each["state"] != "running" and not _was_cancelled(each)]
    if ended and ended[0]["state"] == "failed":
        yield Finding(
            name,
            "error",
            f"its last run failed: {str(ended[0]['error'])[:300]}",
            f"mend what the error says; more of it: solocron explain {name} --tick "
            f"{ended[0]['tick']}",
        )


def _was_cancelled(row: Mapping[str, Any]) -> bool:
    """Whether who asked for a run by hand cancelled it, which is no failure of the job's."""
    return row["origin"] != "schedule" and str(row["error"]).startswith(CANCELLED)


def of_job(
    job: Job, durations_ms: Sequence[int], settings: Settings, now_ms: float, *,
    ttl_known: bool = True,
) -> Iterator[Finding]:  # fmt: skip
    """What does not fit a job's last runs, and the next day on which its time does not exist. The
    TTL of another service's job is not known here."""
    yield from _gap(job.name, job.calendar, now_ms)
    if len(durations_ms) < _FEW_RUNS:
        return
    took_ms = p95(durations_ms)
    took = f"of its last {len(durations_ms)} runs 95 % took up to {took_ms / 1000:.1f} s"
    if ttl_known:
        yield from _ttl(job, took_ms, took, len(durations_ms))
    if took_ms > settings.grace * 1000:
        yield Finding(
            job.name,
            "warning",
            f"SOLOCRON_GRACE is {settings.grace:g} s; {took}: a stop cuts it off, and another "
            "server does it again",
            f"a grace of {1.5 * took_ms / 1000:.0f} s",
        )
    tick = job.calendar.next_after(now_ms)
    every_ms = job.calendar.next_after(tick) - tick
    if took_ms > every_ms:
        yield Finding(
            job.name,
            "warning",
            f"it is due every {every_ms / 1000:g} s; {took}: ticks are left out",
            "make it faster, or its schedule wider",
        )


def _ttl(job: Job, took_ms: float, took: str, runs: int) -> Iterator[Finding]:
    least_s, most_s = ttl_for(took_ms / 1000)
    ttl_s, range_s = job.ttl_ms / 1000, f"{least_s:.0f} to {most_s:.0f} s"
    if job.ttl_ms < 2 * took_ms:
        yield Finding(job.name, "warning", f"its TTL is {ttl_s:g} s; {took}", f"a TTL of {range_s}")
    elif ttl_s > max(most_s, _PLAIN_TTL_S) and runs >= _ENOUGH_RUNS:
        yield Finding(job.name, "note", f"its TTL is {ttl_s:g} s; {took}", f"{range_s} would do")


def ttl_for(duration_s: float) -> tuple[float, float]:
    """The TTL, from and to, in s, that suits a job of so many s: 2 to 3 minutes under a minute, 5
    to 10 up to 5 minutes, else twice its duration, and up to three times."""
    if duration_s < 60:
        return 120, 180
    if duration_s <= 300:
        return 300, 600
    return 2 * duration_s, 3 * duration_s


def _gap(about: str, calendar: Calendar, now_ms: float) -> Iterator[Finding]:
    for gap in calendar.gaps(now_ms, now_ms + _YEAR_MS):
        if gap.tick is not None:
            yield Finding(
                about,
                "note",
                f"on {gap.start:%Y-%m-%d} its time does not exist in "
                f"{calendar.zone}, whose clocks are put on from {gap.start:%H:%M} to "
                f"{gap.end:%H:%M}: it comes at {gap.end:%H:%M}",
                "nothing, or a time of day that exists each day",
            )
            return
