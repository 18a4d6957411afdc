"""A move from older servers, which lock by a plain SET and DEL, and leave no trace.

One that comes a little late to a tick of milliseconds finds it unlocked, and runs it again; so
would a server of ours after one of theirs. While SOLOCRON_RESERVE says that there may be such
servers, ours keep each lock between its runs, too, from a moment on at which no tick was or will be
near: the ticks before it are theirs, all others ours. They get the lock again when the last of ours
has been gone for some seconds. Jobs that they do not have (not `Job.reserve`) need none of that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.locks.manager import LockManager

log = logging.getLogger("solocron.cron")


class Reserving:
    """Keeps the locks of jobs that older servers have reserved at each `sweep`, which comes every
    `sweep_s`, until some are missed; does nothing where the lock manager has no margin."""

    def __init__(self, locks: LockManager, clock: Clock, sweep_s: float) -> None:
        self._locks = locks
        self._clock = clock
        self._reserved_ms = int(sweep_s * 3000) + 2000
        self._sure_ms = 2 * locks.margin_ms + sweep_s * 1200  # as far apart as sweeps can be
        self._ours: set[str] = set()
        self._warned: set[str] = set()

    async def sweep(self, jobs: Sequence[Job]) -> None:
        """Reserve each job's lock, or keep it so. Raises LockUnavailable."""
        jobs = [job for job in jobs if job.reserve]
        if not self._locks.margin_ms or not jobs:
            return
        now = self._clock.now_ms()
        around = [(j.calendar.latest_at(now) or 0, j.calendar.next_after(now)) for j in jobs]
        asked = [(job.lock_key, *ticks) for job, ticks in zip(jobs, around, strict=True)]
        reserved = await self._locks.reserve(asked, self._reserved_ms)
        for job, ticks, ours in zip(jobs, around, reserved, strict=True):
            if ours is not (job.name in self._ours):
                self._note(job, ours)
            if not ours:
                self._warn_of_ticks_too_close(job, *ticks)

    def _note(self, job: Job, ours: bool) -> None:
        if ours:
            self._ours.add(job.name)
            text = "The %s cron is run by these servers only from now on: its lock is reserved."
        else:
            self._ours.discard(job.name)
            text = "The %s cron is left to the older servers until its lock can be reserved."
        log.warning(text, job.title, extra={"job": job.name})

    def _warn_of_ticks_too_close(self, job: Job, last: float, following: float) -> None:
        apart_ms = self._clock.real_ms(following) - self._clock.real_ms(last)
        if apart_ms > self._sure_ms or job.name in self._warned:
            return
        self._warned.add(job.name)
        log.warning(
            "The %s cron may not be run here while its ticks are %.1f s apart: its lock is "
            "reserved at a sweep that none is near, which is sure only from more than %.1f s "
            "on: twice SOLOCRON_RESERVE and 1.2 times SOLOCRON_SWEEP: set them lower.", job.title,
            apart_ms / 1000, self._sure_ms / 1000, extra={"job": job.name},
        )  # fmt: skip
