"""The jobs a service hosts, by name, and the decorator that makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, TypedDict, TypeVar

from typing_extensions import Unpack

from solocron.cron.job import Body, Job
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, UnknownJob

AnyBody = TypeVar("AnyBody", bound=Body)


class JobOptions(TypedDict, total=False):
    """What a job may be told beside its schedule. None is as if it were not said: the deployment's
    setting, where there is one.

    `name`: unless said its function's, with '-' for '_'.
    `zone`: the IANA zone of its schedule (SOLOCRON_TIMEZONE).
    `ttl`: life of the lock key, renewed while its owner lives (5 minutes unless said).
    `lease`: for how long an owner is trusted without a sign of life (SOLOCRON_LEASE).
    `catch_up`: of the ticks that nobody ran, which are run late: the `latest` (unless said), `all`
    of them, the oldest first, or none (`skip`).
    `catch_up_window`: how old they may be (SOLOCRON_CATCH_UP).
    `overlap`: whether a tick that comes due while the one before runs is left out (`skip`, unless
    said) or waits (`queue`).
    `attempts`: how often a run is tried (3 unless said); `backoff`: the pause before the second
    (1 s unless said), from then on twice the one before, up to 5 minutes.
    `on_redis_down`: whether to `run` or `skip` while Redis is away (SOLOCRON_ON_REDIS_DOWN).
    `reserve`: the JavaScript version's servers have it, too (see SOLOCRON_RESERVE).
    `expected`: a run that takes longer is an alert.
    `jitter`: its runs begin up to so much after their ticks, by a delay made of the job's name.
    `params`: its parameters (JSON values) and what they are unless a run by hand says otherwise.
    `ping`: a URL that is told of the begin and the end of each run, as Healthchecks has it.
    """

    name: str | None
    zone: str | None
    ttl: timedelta
    lease: timedelta | None
    catch_up: Literal["latest", "all", "skip"] | None
    catch_up_window: timedelta | None
    overlap: Literal["skip", "queue"]
    attempts: int
    backoff: timedelta
    on_redis_down: Literal["run", "skip"] | None
    reserve: bool
    expected: timedelta | None
    jitter: timedelta | None
    params: Mapping[str, Any] | None
    ping: str


_DURATIONS = {
    "ttl": "ttl_ms", "lease": "lease_ms", "catch_up_window": "catch_up_ms",
    "backoff": "backoff_ms", "expected": "expected_ms", "jitter": "jitter_ms",
}  # fmt: skip
_AS_THEY_ARE = ("catch_up", "overlap", "attempts", "on_redis_down", "reserve", "params", "ping")
_MOST_DURATION_S = 10**9


class Registry(Mapping[str, Job]):
    """The jobs by name. `zone` and `policies` (fields of `Job`) hold for each job made here that
    says nothing else; the ledger keeps runs for `kept_ms`. Frozen while the service runs: what it
    hosts is known when it starts."""

    def __init__(self, *, zone: str, policies: Mapping[str, Any], kept_ms: int) -> None:
        self._kept_ms = kept_ms
        self._zone = zone
        self._policies = dict(policies)
        self._jobs: dict[str, Job] = {}
        self._frozen = False

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def named(self, name: str) -> Job:
        """The job of that name. Raises UnknownJob."""
        if name not in self._jobs:
            known = ", ".join(self._jobs)
            raise UnknownJob(f"there is no job named {name[:100]!r}: use one of {known}")
        return self._jobs[name]

    def of(self, body: Body) -> Job:
        """The job whose body that is. Raises UnknownJob."""
        for job in self._jobs.values():
            if job.body == body:
                return job
        name = str(getattr(body, "__name__", body))[:100]
        raise UnknownJob(f"{name} is no job's body: decorate it with job()")

    def freeze(self) -> None:
        """Take no more jobs."""
        self._frozen = True

    def thaw(self) -> None:
        """Take jobs again."""
        self._frozen = False

    def add(self, job: Job) -> None:
        """Host a job, from the next start on. Raises ConfigError for a name in use, and while the
        service runs."""
        if job.name in self._jobs:
            raise ConfigError(f"there is a job named {job.name!r} already: give this one another")
        if self._frozen:
            raise ConfigError(f"job {job.name!r}: add jobs before the service starts")
        self._jobs[job.name] = job

    def job(self, schedule: str, **options: Unpack[JobOptions]) -> Callable[[AnyBody], AnyBody]:
        """Host the decorated coroutine at each tick of `schedule`, a cron expression. Raises
        ConfigError for an option it cannot work with."""

        def host(body: AnyBody) -> AnyBody:
            self.add(self._made(schedule, body, options))
            return body

        return host

    def _made(self, schedule: str, body: Body, options: JobOptions) -> Job:
        name = options.get("name") or str(getattr(body, "__name__", "")).replace("_", "-")
        unknown = options.keys() - JobOptions.__annotations__.keys()
        if unknown:
            raise ConfigError(
                f"job {name[:100]!r}: there is no option {min(unknown)[:40]!r}: use of "
                + ", ".join(JobOptions.__annotations__)
            )
        _check_takes_a_run(name, body)
        given = {option: value for option, value in options.items() if value is not None}
        fields: dict[str, Any] = {
            **self._policies,
            **{each: given[each] for each in _AS_THEY_ARE if each in given},
            **{
                _DURATIONS[each]: _ms(name, each, given[each])
                for each in _DURATIONS
                if each in given
            },
        }
        if fields.get("catch_up_ms", 0) > self._kept_ms:
            raise ConfigError(
                f"catch_up_window of job {name[:100]!r} is {fields['catch_up_ms'] / 1000:g} s: "
                f"give at most {self._kept_ms / 1000:g} s, for which the ledger keeps runs, or set "
                "SOLOCRON_HISTORY higher"
            )
        return Job(
            name=name, calendar=self._calendar(name, schedule, options.get("zone")), body=body,
            **fields,
        )  # fmt: skip

    def _calendar(self, name: str, schedule: str, zone: str | None) -> Calendar:
        try:
            return Calendar(schedule, self._zone if zone is None else zone)
        except ConfigError as error:
            raise ConfigError(f"job {name[:100]!r}: {error}") from None


def _check_takes_a_run(name: str, body: Body) -> None:
    try:
        inspect.signature(body).bind(None)
    except TypeError:
        raise ConfigError(
            f"job {name[:100]!r}: its function is called with the run, and nothing else: write "
            f"def {name.replace('-', '_')[:100]}(run: Run)"
        ) from None
    except ValueError:
        pass  # a built-in that does not say what it takes


def _ms(name: str, option: str, duration: object) -> int:
    if not isinstance(duration, timedelta) or abs(duration.total_seconds()) > _MOST_DURATION_S:
        raise ConfigError(
            f"{option} of job {name[:100]!r} is {str(duration)[:40]!r}: give a timedelta, such as "
            "timedelta(minutes=5)"
        )
    return int(duration.total_seconds() * 1000)
