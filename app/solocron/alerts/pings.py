"""Dead-man pings, as Healthchecks has them: who watches notices when they stay away.

Of each run of a job with a `ping` URL the server that runs it GETs `<url>/start` at the begin,
`<url>` after success and `<url>/fail` after failure. No run waits for a ping. The URL is a secret,
of which only the host is told.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit, urlunsplit

from aiohttp import ClientError, ClientSession, ClientTimeout

from solocron.alerts.line import Line
from solocron.cron.job import Job
from solocron.cron.journal import Entry
from solocron.cron.outcome import SUCCEEDED
from solocron.cron.runner import Runner

log = logging.getLogger("solocron.alerts")

WITHIN_S = 5.0
_PAUSES_S = (1.0, 5.0, 15.0)
_GRACE_S = 2.0
_MAX_WAITING = 100


def places_of(url: str) -> Mapping[str, str]:
    """Where the begin, the success and the failure of a run are told."""
    base = urlsplit(url)
    path = base.path.rstrip("/")
    return {
        what: urlunsplit(base._replace(path=path + more, fragment=""))
        for what, more in (("start", "/start"), ("success", ""), ("fail", "/fail"))
    }


class Pings:
    """Pings for the runs of `runner`. Run `run()` as a task."""

    def __init__(self, runner: Runner) -> None:
        self._lines: dict[str, Line[str]] = {}
        self._failing: set[str] = set()
        runner.begun.append(lambda job: self._tell(job.name, "start"))
        runner.journal.listen(self._note)

    def _note(self, entry: Entry) -> None:
        if entry.verdict in SUCCEEDED:
            self._tell(entry.job, "success")
        elif entry.verdict == "failed" and entry.attempt:
            self._tell(entry.job, "fail")

    def _tell(self, job: str, what: str) -> None:
        line = self._lines.get(job)
        if line is not None:
            line.put(what)

    async def run(self, jobs: Mapping[str, Job]) -> None:
        """Ping for those of `jobs` that have a URL, until cancelled; what waits then gets a moment
        to go out."""
        async with (
            ClientSession(timeout=ClientTimeout(WITHIN_S)) as session,
            asyncio.TaskGroup() as group,
        ):
            for job in jobs.values():
                if job.ping:
                    send = partial(self._ping, session, job.name, places_of(job.ping))
                    line = self._lines[job.name] = Line(send, most=_MAX_WAITING, grace_s=_GRACE_S)
                    group.create_task(line.run())

    async def _ping(
        self, session: ClientSession, job: str, places: Mapping[str, str], what: str
    ) -> None:
        """Ping once, and again while that fails, a few times; the first of failures in a row is
        told."""
        url, host = places[what], urlsplit(places[what]).hostname
        for pause_s in (*_PAUSES_S, 0.0):
            reason = await _get(url, session)
            if reason is None:
                if job in self._failing:
                    log.info("Pings of %s to %s work again", job, host)
                self._failing.discard(job)
                return
            if job not in self._failing:
                log.warning("A ping of %s to %s failed, will try again: %s", job, host, reason)
            self._failing.add(job)
            if pause_s:
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))


async def _get(url: str, session: ClientSession) -> str | None:
    """What went wrong; None if nothing did. Errors are told by their kind: their texts may hold the
    URL."""
    try:
        async with session.get(url, allow_redirects=False) as answer:
            return None if answer.status < 400 else f"status {answer.status}"
    except TimeoutError:
        return f"no answer within {WITHIN_S:g} s"
    except (ClientError, OSError, ValueError) as error:
        return type(error).__name__
