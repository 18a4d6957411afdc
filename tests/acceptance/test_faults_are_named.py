"""A fault is named wherever an operator looks, within ten seconds: by `explain` and `doctor`, as an
alert, as a metric and on the dashboard. Real workers, a real Redis, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from commands import Cli
from conftest import RedisServer
from workers import Worker, prepare, until

WITHIN_S = 10
BUILT_IN = "store-open-reminder"  # known to the command line also while Redis is away
SETTINGS = {
    "sweep": 0.5, "lease": 2, "alert_after": 1, "store_open_reminder_schedule": "*/2 * * * * *",
}  # fmt: skip


@dataclass
class Fleet:
    """Two workers, and all the places where an operator looks. Metrics are of each worker, as
    Prometheus has them; the rest is asked of the last one."""

    cli: Cli
    workers: list[Worker]
    http: aiohttp.ClientSession
    job: str = BUILT_IN
    gone: frozenset[int] = frozenset()

    async def _told(self, *args: str) -> Any:
        result = await self.cli(*args, "--json")
        return json.loads(result.out) if result.out else {}

    async def _page(self, path: str, worker: int = -1) -> str:
        url = f"http://127.0.0.1:{self.workers[worker].port}{path}"
        async with self.http.get(url) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    async def explain(self) -> list[str]:
        """`text`, `note: text` and `worker: text`."""
        told = await self._told("explain", self.job)
        notes = [f"{each['about']}: {each['text']}" for each in told["notes"]]
        workers = [f"{each['worker']}: {each['text']}" for each in told["workers"]]
        return [told["text"], *notes, *workers]

    async def doctor(self) -> list[str]:
        """`about: text` of each finding."""
        told = await self._told("doctor")
        return [f"{each['about']}: {each['text']}" for each in told["findings"]]

    async def alerts(self) -> list[str]:
        """`alert job: detail`."""
        told = json.loads(await self._page("/api/v1/alerts"))["alerts"]
        return [f"{each['alert']} {each['job']}: {each['detail']}" for each in told]

    async def metrics(self) -> list[str]:
        """A line of a sample each."""
        pages = [await self._page("/metrics", each) for each in self._answering()]
        return [line for page in pages for line in page.splitlines()]

    def _answering(self) -> list[int]:
        return [n for n in range(len(self.workers)) if n not in self.gone]

    async def dashboard(self) -> list[str]:
        """A row of a table, or a paragraph, each."""
        page = await self._page("/dashboard")
        return [" ".join(each.split()) for each in page.replace("</tr>", "<p").split("<p")]

    async def is_known(self) -> bool:
        """Whether each worker has told of itself since the last one was started."""
        told = json.loads(await self._page("/api/v1/workers"))["workers"]
        last = max((each["started_ms"] for each in told), default=0)
        return sum(each["seen_ms"] > last for each in told) == len(self.workers)

    async def names(self, *wanted: tuple[str, ...]) -> None:
        """In each place there is, in time, a line with all of the words: (place, word, ...). Raises
        what it said instead."""
        last: dict[tuple[str, ...], list[str]] = {}

        async def shows(place: str, *words: str) -> None:
            while True:
                last[place, *words] = lines = await getattr(self, place)()
                if any(all(word in line for word in words) for line in lines):
                    del last[place, *words]
                    return
                await asyncio.sleep(0.1)

        try:
            async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
                for each in wanted:
                    group.create_task(shows(*each))
        except TimeoutError:
            raise AssertionError(f"not named within {WITHIN_S} s: {last}") from None


@asynccontextmanager
async def fleet(
    redis: RedisServer, database: str, folder: Path, job: Mapping[str, Any] | None = None
) -> AsyncIterator[Fleet]:
    await (await prepare(database)).close()
    workers = await asyncio.gather(
        *(
            Worker.start(
                redis=redis.url, database=database, job=job and {**job, "name": name}, **SETTINGS
            )
            for name in ("w0", "w1")
        )
    )
    variables = {f"SOLOCRON_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    cli = Cli(folder, {"REDIS_URL": redis.url, "DATABASE_URL": database, **variables})
    try:
        async with aiohttp.ClientSession() as http:
            here = Fleet(cli, workers, http)
            await until(here.is_known)
            yield here
    finally:
        await asyncio.gather(*(each.stop() for each in workers))
        await cli.close()


async def test_redis_is_killed(own_redis: RedisServer, postgres_url: str, tmp_path: Path) -> None:
    async with fleet(own_redis, postgres_url, tmp_path) as here:
        own_redis.stop()
        await here.names(
            ("explain", "redis: what the servers did is not known", str(own_redis.port)),
            ("doctor", "redis: ", str(own_redis.port)),
            ("alerts", "redis-down : Redis is away"),
            ("metrics", 'solocron_alert{alert="redis-down",job=""} 1'),
            ("dashboard", "Alert redis-down:", "Redis is away"),
            ("dashboard", "Degraded:", "Redis does not answer"),
        )


async def test_a_job_fails(own_redis: RedisServer, postgres_url: str, tmp_path: Path) -> None:
    job = {"error": "no stock", "schedule": "*/2 * * * * *", "attempts": 1}
    async with fleet(own_redis, postgres_url, tmp_path, job) as here:
        here.job = "tick-test"
        await here.names(
            ("explain", "failed: ValueError: no stock"),
            ("doctor", "tick-test: its last run failed: ValueError: no stock"),
            ("alerts", "job-failed tick-test: the tick-test cron failed: ValueError: no stock"),
            ("metrics", 'solocron_alert{alert="job-failed",job="tick-test"} 1'),
            ("dashboard", "Alert job-failed:", "tick-test", "ValueError: no stock"),
        )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_worker_is_gone(
    how: signal.Signals, own_redis: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    async with fleet(own_redis, postgres_url, tmp_path) as here:
        gone = here.workers[0]
        worker = f":{gone.process.pid}:"
        gone.signal(how)
        here.gone = frozenset({0})
        await here.names(
            ("explain", worker, "was dead by then: last seen "),
            ("doctor", worker, "it has been silent since "),
            ("alerts", "worker-silent : ", worker, "silent, though not stopped"),
            ("metrics", 'solocron_alert{alert="worker-silent",job=""} 1'),
            ("dashboard", "Alert worker-silent:", worker),
            ("dashboard", 'scope="row"', worker, "silent"),
        )
        if how is signal.SIGSTOP:
            gone.signal(signal.SIGCONT)
            await here.names(("dashboard", 'scope="row"', worker, "alive"))
            async with asyncio.timeout(WITHIN_S):
                while await here.alerts():
                    await asyncio.sleep(0.1)
