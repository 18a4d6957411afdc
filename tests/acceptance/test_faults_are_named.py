"""A fault in `solocron demo` is named wherever an operator looks, within ten seconds: by `explain`
and `doctor`, as an alert and in the log, as a metric and on the dashboard."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page

from browsing import browser_page, chromium
from commands import Cli
from demos import Demo, demos
from workers import until

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]

WITHIN_S = 10
BUILT_IN = "store-open-reminder"  # known to the command line also while Redis is away
ROWS = """[...document.querySelectorAll("tr, p")]
    .map((each) => each.textContent.replace(/\\s+/g, " ").trim())"""


@dataclass
class Show:
    """A demo, and all the places where an operator looks. Metrics are of each worker, as Prometheus
    has them; the rest is asked of the last one, whose dashboard stays open in the browser."""

    demo: Demo
    cli: Cli
    http: aiohttp.ClientSession
    page: Page | None
    redis: int
    workers: list[int]
    ports: list[int]
    job: str = BUILT_IN
    gone: frozenset[int] = frozenset()

    async def _told(self, *args: str) -> Any:
        result = await self.cli(*args, "--json")
        return json.loads(result.out) if result.out else {}

    async def _text(self, path: str, worker: int = -1) -> str:
        async with self.http.get(f"http://127.0.0.1:{self.ports[worker]}{path}") as response:
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
        told = json.loads(await self._text("/api/v1/alerts"))["alerts"]
        return [f"{each['alert']} {each['job']}: {each['detail']}" for each in told]

    async def log(self) -> list[str]:
        """What the demo has printed, which is what the workers logged of it."""
        return list(self.demo.lines)

    async def metrics(self) -> list[str]:
        """A line of a sample each."""
        answering = [n for n in range(len(self.ports)) if n not in self.gone]
        pages = [await self._text("/metrics", each) for each in answering]
        return [line for page in pages for line in page.splitlines()]

    async def dashboard(self) -> list[str]:
        """A row of a table, or a paragraph, each; of the HTML where there is no browser."""
        if self.page is not None:
            return list(await self.page.evaluate(ROWS))
        html = re.split("</tr>|<p", await self._text("/dashboard"))
        return [" ".join(re.sub("<[^>]*>", " ", f"<{each}").split()) for each in html]

    async def is_well(self) -> bool:
        """Whether each worker tells of itself, nothing is raised, and the job ran well."""
        told = json.loads(await self._text("/api/v1/workers"))["workers"]
        all_alive = sum(each["alive"] for each in told) == len(self.workers)
        if not all_alive or await self.alerts():
            return False
        return bool((await self._told("explain", self.job))["state"] == "succeeded")

    async def names(self, fault: Callable[[], None], *wanted: tuple[str, ...]) -> None:
        """Once the fault is there, each place has in time a line with all of the words: (place,
        word, ...). Raises what it said instead."""
        last: dict[tuple[str, ...], list[str]] = {}

        async def shows(place: str, *words: str) -> None:
            while True:
                last[place, *words] = lines = await getattr(self, place)()
                if any(all(word in line for word in words) for line in lines):
                    del last[place, *words]
                    return
                await asyncio.sleep(0.1)

        fault()
        try:
            async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
                for each in wanted:
                    group.create_task(shows(*each))
        except TimeoutError:
            raise AssertionError(f"not named within {WITHIN_S} s: {last}") from None


async def variables_of(setup: str) -> dict[str, str]:
    """What a shell has after it has read the file that the demo names."""
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", f". {setup}; env", stdout=asyncio.subprocess.PIPE, env={"PATH": "/bin:/usr/bin"}
    )
    out, _ = await shell.communicate()
    lines = [line.partition("=") for line in out.decode().splitlines()]
    return {name: value for name, _, value in lines if name not in ("PWD", "_", "SHLVL", "OLDPWD")}


@asynccontextmanager
async def show(folder: Path, *arguments: str) -> AsyncIterator[Show]:
    async with AsyncExitStack() as stack:
        begin = stack.enter_context(demos(folder))
        demo = begin("--real-time", *arguments)
        found = await asyncio.to_thread(demo.read_until, r"^To look at it.*: \. (\S+),")
        reading = asyncio.create_task(asyncio.to_thread(demo.finish))
        stack.push_async_callback(asyncio.wait, [reading])
        stack.callback(demo.kill)
        cli = Cli(folder, await variables_of(found[1]))
        stack.push_async_callback(cli.close)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        workers = re.findall(r"worker [ABC] pid (\d+), http://127\.0\.0\.1:(\d+)", demo.output)
        redis = re.search(r"redis +pid (\d+)", demo.output)
        assert redis is not None and len(workers) == 3, demo.output
        page = await stack.enter_async_context(browser_page()) if chromium() else None
        here = Show(
            demo, cli, http, page, int(redis[1]),
            [int(pid) for pid, _ in workers], [int(port) for _, port in workers],
        )  # fmt: skip
        if page is not None:
            await page.goto(f"http://127.0.0.1:{here.ports[-1]}/dashboard")
        yield here


async def test_redis_is_killed(tmp_path: Path) -> None:
    async with show(tmp_path) as here:
        await until(here.is_well)
        port = re.search(r":(\d+)/", here.cli.variables["REDIS_URL"])
        assert port is not None
        await here.names(
            lambda: os.kill(here.redis, signal.SIGKILL),
            ("explain", "redis: what the servers did is not known", port[1]),
            ("doctor", "redis: ", port[1]),
            ("alerts", "redis-down : Redis is away"),
            ("log", "ALARM: Redis is away"),
            ("metrics", 'solocron_alert{alert="redis-down",job=""} 1'),
            ("dashboard", "Alert redis-down:", "Redis is away"),
            ("dashboard", "Degraded:", "Redis does not answer"),
        )
        await until(here.is_well)  # the demo starts it again
        assert "RESOLVED: Redis is there again" in here.demo.output


async def test_a_job_fails(tmp_path: Path) -> None:
    async with show(tmp_path, "--failing-job") as here:
        here.job = "stock-check"
        found = re.search(r"fails until rm (\S+),", here.demo.output)
        assert found is not None
        reason = f"RuntimeError: the stock cannot be counted while {found[1]} exists"
        os.unlink(found[1])
        await until(here.is_well)
        here.demo.lines.clear()
        await here.names(
            Path(found[1]).touch,
            ("explain", f"failed: {reason}"),
            ("doctor", f"stock-check: its last run failed: {reason}"),
            ("alerts", f"job-failed stock-check: the stock-check cron failed: {reason}"),
            ("log", f"ALARM: the stock-check cron failed: {reason}"),
            ("metrics", 'solocron_alert{alert="job-failed",job="stock-check"} 1'),
            ("dashboard", "Alert job-failed:", "stock-check", reason),
        )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_worker_is_gone(how: signal.Signals, tmp_path: Path) -> None:
    async with show(tmp_path) as here:
        await until(here.is_well)
        worker = f":{here.workers[0]}:"
        here.gone = frozenset({0})
        await here.names(
            lambda: os.kill(here.workers[0], how),
            ("explain", worker, "was dead by then: last seen "),
            ("doctor", worker, "it has been silent since "),
            ("alerts", "worker-silent ", worker, "silent, though not stopped"),
            ("log", "ALARM: ", worker, "silent, though not stopped"),
            ("metrics", 'solocron_alert{alert="worker-silent",job=""} 1'),
            ("dashboard", "Alert worker-silent:", worker),
            ("dashboard", worker, "silent", "ms late"),
        )
        if how is signal.SIGSTOP:
            os.kill(here.workers[0], signal.SIGCONT)
            await until(here.is_well)
