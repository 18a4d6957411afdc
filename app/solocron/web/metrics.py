"""`/metrics`, for Prometheus: counted where it happens, or read from what lives when it is asked.

The labels are bounded: a job is one that this server hosts (the first 500 of them), what concerns
others is in one series, `(others)`. What is read from the database is read every 15 s at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from solocron.cron.journal import Entry
from solocron.cron.outcome import SUCCEEDED, VERDICTS
from solocron.errors import StorageUnavailable
from solocron.locks.statistics import LockCounts
from solocron.web.auth import Authenticator
from solocron.web.guard import bearer
from solocron.web.sources import Sources

log = logging.getLogger("solocron.web")

SCOPE = "metrics:read"
OTHERS = "(others)"
_MAX_JOBS = 500
_MAX_CHANNELS = 100
_DELIVERIES_EVERY_S = 15.0
_DELIVERIES_WITHIN_S = 2.0
_STATES = ("succeeded", "failed", "lost")
_LATENESS_S = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600)
_DURATION_S = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Happened(Collector):
    """What is counted as it happens: entries of the journal, and locks let go."""

    def __init__(self, job_of: Callable[[str], str]) -> None:
        self._job_of = job_of
        self._ticks = Counter(
            "solocron_ticks", "Ticks that this worker tried, by what became of them.",
            ["job", "verdict"], registry=None,
        )  # fmt: skip
        self._runs = Counter(
            "solocron_runs", "Runs begun here, by how they ended.", ["job", "state"], registry=None
        )
        self._lateness = Histogram(
            "solocron_tick_lateness_seconds", "From a tick to the beginning of its run here.",
            ["job"], buckets=_LATENESS_S, registry=None,
        )  # fmt: skip
        self._duration = Histogram(
            "solocron_run_duration_seconds", "How long runs took here, retries included.",
            ["job"], buckets=_DURATION_S, registry=None,
        )  # fmt: skip
        self._hold = Histogram(
            "solocron_lock_hold_seconds", "How long locks were held that this worker let go.",
            ["job"], buckets=_DURATION_S, registry=None,
        )  # fmt: skip
        self.succeeded_ms: dict[str, int] = {}

    def begin(self, jobs: Iterable[str]) -> None:
        """Have every series of these jobs, at 0: a rate can be taken of the first one, too."""
        for job in jobs:
            for verdict in VERDICTS:
                self._ticks.labels(job, verdict)
            for state in _STATES:
                self._runs.labels(job, state)
            for histogram in (self._lateness, self._duration, self._hold):
                histogram.labels(job)

    def note(self, entry: Entry) -> None:
        """Count an entry of the journal."""
        job = self._job_of(entry.job)
        self._ticks.labels(job, entry.verdict).inc()
        if not entry.begun or not entry.attempt:
            return
        state = "succeeded" if entry.verdict in SUCCEEDED else entry.verdict
        self._runs.labels(job, state).inc()
        self._lateness.labels(job).observe(entry.late_ms / 1000)
        if state != "lost":
            self._duration.labels(job).observe(entry.duration_ms / 1000)
        if state == "succeeded":
            self.succeeded_ms[job] = entry.at_ms

    def held(self, job: str, held_s: float) -> None:
        """Count a lock that was let go."""
        self._hold.labels(job).observe(held_s)

    def collect(self) -> Iterable[Metric]:
        """All of it, without the library's times of creation: they double the series."""
        for each in (self._ticks, self._runs, self._lateness, self._duration, self._hold):
            for metric in each.collect():
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
                yield metric


class Metrics(Collector):
    """Handles `/metrics` for tokens with metrics:read."""

    def __init__(self, sources: Sources, authenticator: Authenticator) -> None:
        self._sources = sources
        self._authenticator = authenticator
        self._deliveries: list[tuple[tuple[str, str], float]] = []
        self._read_at_s: float | None = None
        self._reading = asyncio.Lock()
        self._names: frozenset[str] = frozenset()
        self._keys: Mapping[str, str] = {}
        self._read_jobs = 0
        self._happened = Happened(self._hosted)
        sources.journal.listen(self._happened.note)
        sources.locks.statistics.on_release = self._released
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(self._happened)
        ProcessCollector(registry=self._registry)

    async def page(self, request: web.Request) -> web.Response:
        """The metrics, in the format the client asks for."""
        self._authenticator.authenticate(bearer(request)).require(SCOPE)
        await self._read_deliveries()
        self._happened.begin(self._jobs())
        try:
            encode, kind = choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # of a version that is none
            encode, kind = choose_encoder("")
        response = web.Response(body=encode(self._registry), headers={"Content-Type": kind})
        response.enable_compression()
        return response

    # -- names -----------------------------------------------------------------------------

    def _jobs(self) -> list[str]:
        return list(islice(self._sources.jobs, _MAX_JOBS))

    def _hosted(self, job: str) -> str:
        return job if job in self._named() else OTHERS

    def _released(self, key: str, held_s: float) -> None:
        self._happened.held(self._of_keys().get(key, OTHERS), held_s)

    def _of_keys(self) -> Mapping[str, str]:
        """The jobs by lock key."""
        self._named()
        return self._keys

    def _named(self) -> Collection[str]:
        """The jobs that are told of by name. Each run asks for them, and they are read anew only
        when there are more."""
        if len(self._sources.jobs) != self._read_jobs:
            self._read_jobs = len(self._sources.jobs)
            self._names = frozenset(self._jobs())
            self._keys = {self._sources.jobs[name].lock_key: name for name in self._names}
        return self._names

    # -- what is read when it is asked for -------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """What lives, as it is now."""
        yield from self._locks()
        yield from self._of_jobs()
        yield from self._of_worker()
        yield from self._of_clients()

    def _locks(self) -> Iterable[Metric]:
        attempts: defaultdict[tuple[str, str], float] = defaultdict(float)
        renewals: defaultdict[tuple[str], float] = defaultdict(float)
        lost: defaultdict[tuple[str], float] = defaultdict(float)
        of_keys = self._of_keys()
        found = self._sources.locks.statistics.snapshot()
        for key in {*of_keys, *found}:
            job, counts = of_keys.get(key, OTHERS), found.get(key, LockCounts())
            for result in ("acquired", "held", "done", "paused", "unavailable"):
                attempts[job, result] += getattr(counts, result)
            renewals[(job,)] += counts.renewals
            lost[(job,)] += counts.lost
        yield _counter("solocron_lock_attempts", "Attempts at a lock, by what became of them.",
                       ("job", "result"), attempts.items())  # fmt: skip
        yield _counter("solocron_lock_renewals", "Renewals of a lock.", ("job",), renewals.items())
        yield _counter("solocron_lock_lost", "Locks lost while they were held.", ("job",),
                       lost.items())  # fmt: skip

    def _of_jobs(self) -> Iterable[Metric]:
        sources, jobs = self._sources, self._jobs()
        now_ms = sources.clock.now_ms()
        paused = sources.paused()
        yield _gauge(
            "solocron_job_next_tick_timestamp_seconds", "When the job comes due next.", ("job",),
            [((job,), sources.jobs[job].calendar.next_after(now_ms) / 1000) for job in jobs],
        )  # fmt: skip
        yield _gauge(
            "solocron_job_last_success_timestamp_seconds",
            "When the job was last done by this worker.", ("job",),
            [((job,), ms / 1000) for job, ms in self._happened.succeeded_ms.items()],
        )  # fmt: skip
        yield _gauge(
            "solocron_job_paused", "Whether an operator paused the job, as of the last sweep.",
            ("job",), [((job,), job in paused) for job in jobs],
        )  # fmt: skip
        yield _one("solocron_jobs_running", "Ticks being tried or run.", sources.running())
        yield _gauge(
            "solocron_alert", "1 while the alert is raised.", ("alert", "job"),
            {((alert, self._hosted(job) if job else ""), 1) for alert, job in sources.alarms()},
        )  # fmt: skip

    def _of_worker(self) -> Iterable[Metric]:
        sources = self._sources
        yield _one(
            "solocron_clock_skew_seconds", "How far the clock is ahead of Redis's (or behind).",
            sources.locks.skew.ahead_ms / 1000,
        )  # fmt: skip
        yield _one("solocron_loop_lag_seconds", "How late the event loop was when last measured.",
                   sources.watchdog.lag_s)  # fmt: skip
        yield _one("solocron_redis_up", "Whether Redis answered last.", sources.locks.link.is_up)
        if sources.stored is not None:
            yield _one("solocron_database_up", "Whether the database answered last.",
                       not sources.stored.database.is_lost)  # fmt: skip
        yield _gauge("solocron_build_info", "The release.", ("version", "python"),
                     [(sources.build, 1)])  # fmt: skip

    def _of_clients(self) -> Iterable[Metric]:
        sources, stored = self._sources, self._sources.stored
        if stored is None:
            return
        yield _gauge("solocron_connections", "Open connections of clients.", ("kind",),
                     [((kind,), count) for kind, count in sources.connections.kinds().items()]
                     )  # fmt: skip
        yield _one("solocron_hub_stores", "Stores that a client of this server watches.",
                   stored.hub.stores)  # fmt: skip
        yield _counter("solocron_hub_deliveries", "Notifications sent, once for each client.", (),
                       [((), stored.hub.deliveries)])  # fmt: skip
        yield _one("solocron_relay_queued", "Notifications that wait for Redis.",
                   stored.relay.queued)  # fmt: skip
        yield _counter("solocron_slow_clients", "Clients given up as too slow.", (),
                       [((), sources.connections.turn.slow)])  # fmt: skip
        yield _gauge("solocron_deliveries", "Emails, SMS and the like, by state.",
                     ("channel", "state"), self._deliveries)  # fmt: skip

    async def _read_deliveries(self) -> None:
        """Once for all who ask at the same time, every 15 s; none while the database is away."""
        loop, stored = asyncio.get_running_loop(), self._sources.stored
        if stored is None:
            return
        async with self._reading:
            if self._read_at_s is not None and loop.time() < self._read_at_s + _DELIVERIES_EVERY_S:
                return
            self._read_at_s, self._deliveries = loop.time(), []
            try:
                async with asyncio.timeout(_DELIVERIES_WITHIN_S):
                    found = await stored.channels.status()
            except (StorageUnavailable, TimeoutError) as error:
                log.debug("metrics without deliveries: %s", error)
                return
            self._deliveries = [
                ((str(each["channel"]), state), count)
                for each in found[:_MAX_CHANNELS]
                for state, count in each.items()
                if state != "channel"
            ]


_Values = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: tuple[str, ...], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, float(value))
    return family


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, labels: tuple[str, ...], values: _Values) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family
