"""Says when code blocks the event loop, and which code it is.

While the loop is blocked no lease is renewed and no socket served, and no task can tell of it. So
two watch: a task measures by how much the loop is late, and a thread, which runs on while the loop
does not, logs once per stall where the loop's thread is. The thread counts its own rounds and reads
no clock: in a frozen process it stands still too, so that a freeze is not blamed on the code. (Code
that blocks without letting go of the interpreter's lock blocks the thread as well; the task
tells of that afterwards.)
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from itertools import islice

log = logging.getLogger("solocron")

_MAX_FRAMES = 30
_REMEDY = "blocking code belongs in a thread (asyncio.to_thread)"


class Watchdog:
    """Measures how late the event loop is, every `beat_s`. A loop late by more than `slow_s` is
    logged, and once `calm_s` have passed without that; one that has not run for `stalled_s` is
    logged with its stack while it is blocked. All in s.

    `lag_s` is by how much the loop was late when last measured, `worst_s` the most so far.
    """

    def __init__(
        self,
        *,
        beat_s: float = 0.25,
        slow_s: float = 1.0,
        stalled_s: float = 2.0,
        calm_s: float = 10.0,
    ) -> None:
        self.lag_s = 0.0
        self.worst_s = 0.0
        self._beat_s = beat_s
        self._slow_s = slow_s
        self._stalled_s = stalled_s
        self._calm_s = calm_s
        self._beats = 0

    async def run(self) -> None:
        """Watch the running loop until cancelled; the thread has ended then."""
        ended = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(), ended), name="watchdog", daemon=True
        )
        thread.start()
        try:
            await self._measure()
        finally:
            ended.set()
            thread.join(1.0)  # bounded: it may be stuck in writing a log line, and must stop nobody

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        calm_at: float | None = None  # while slow: when it counts as over
        while True:
            due = loop.time() + self._beat_s
            await asyncio.sleep(self._beat_s)
            self._beats += 1
            now = loop.time()
            self.lag_s = max(0.0, now - due)
            self.worst_s = max(self.worst_s, self.lag_s)
            if self.lag_s > self._slow_s:
                if calm_at is None:
                    log.warning(
                        "The event loop was late by %.1f s: %s, unless the process was frozen or "
                        "the machine is overloaded", self.lag_s, _REMEDY,
                        extra={"lag_ms": round(self.lag_s * 1000)},
                    )  # fmt: skip
                calm_at = now + self._calm_s
            elif calm_at is not None and now >= calm_at:
                calm_at = None
                log.info("The event loop is on time again")

    def _watch(self, loop_thread: int, ended: threading.Event) -> None:
        seen, rounds, told = -1, 0, False
        while not ended.wait(self._beat_s):
            if self._beats != seen:
                seen, rounds, told = self._beats, 0, False
                continue
            rounds += 1
            if rounds * self._beat_s >= self._stalled_s and not told:
                told = True
                _tell(loop_thread, rounds * self._beat_s)


def _tell(loop_thread: int, stalled_s: float) -> None:
    """Log what the loop's thread is doing, its innermost frames first, on one line."""
    frame = sys._current_frames().get(loop_thread)
    if frame is None:
        return
    stack = traceback.StackSummary.extract(islice(traceback.walk_stack(frame), _MAX_FRAMES))
    inner = stack[0]
    log.error(
        "The event loop has not run for %.1f s, it is in %s (%s:%s): %s; %s", stalled_s, inner.name,
        inner.filename, inner.lineno, inner.line, _REMEDY,
        extra={"stack": " < ".join(f"{each.name} {each.filename}:{each.lineno}" for each in stack)},
    )  # fmt: skip
