"""The jobs a service hosts, by name, and the decorator that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypedDict, TypeVar

from typing_extensions import Unpack

from solocron.cron.job import Body, Job
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError

AnyBody = TypeVar("AnyBody", bound=Body)


class JobOptions(TypedDict, total=False):
    """What a job may be told beside its schedule.

    `name`: unless said its function's, with '-' for '_'.
    `ttl`: life of the lock key, renewed while its owner lives (5 minutes unless said).
    `expected`: a run that takes longer is an alert.
    `ping`: a URL that is told of the begin and the end of each run, as Healthchecks has it.
    """

    name: str | None
    ttl: timedelta
    expected: timedelta | None
    ping: str


class Registry(Mapping[str, Job]):
    """The jobs by name. `zone` and `policies` (fields of `Job`) hold for each job made here that
    says nothing else. Frozen while the service runs: what it hosts is known when it starts."""

    def __init__(self, *, zone: str, policies: Mapping[str, Any]) -> None:
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
        expected = options.get("expected")
        return Job(
            name=name,
            calendar=Calendar(schedule, self._zone),
            body=body,
            ttl_ms=_ms(options.get("ttl", timedelta(minutes=5))),
            ping=options.get("ping", ""),
            expected_ms=_ms(expected) if expected else 0,
            **self._policies,
        )


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
