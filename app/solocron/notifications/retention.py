"""Retention: what is older than SOLOCRON_HISTORY is deleted, by one server at a time.

Not by the second: it looks once a minute. It works a fifth of the time at most, so that what
writes beside it, above all with SQLite and its one write lock, hardly waits. Without Redis each
server may do it: what is gone already is not found again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from solocron.clock import Clock
from solocron.errors import StorageUnavailable
from solocron.notifications.fanout import Fanout
from solocron.storage.history import BATCH, History

log = logging.getLogger("solocron.notifications")

_IDLE_SHARE = 4  # pauses are so many times as long as the batch before took
_LEAST_PAUSE_S = 0.02
_TURN = "prune"


class Retention:
    """Keeps notifications for `kept_s`, ended runs for `runs_kept_s` if that is longer; looks
    every `every_s`. Times in s. Run `run()` as a task.

    `channels` are those this server delivers on: what waits for them is kept.
    """

    def __init__(
        self, history: History, fanout: Fanout, clock: Clock, *, channels: Sequence[str],
        kept_s: float, runs_kept_s: float = 0.0, every_s: float = 60.0,
    ) -> None:  # fmt: skip
        self._history = history
        self._fanout = fanout
        self._clock = clock
        self._channels = channels
        self._kept_ms = int(kept_s * 1000)
        self._runs_kept_ms = max(self._kept_ms, int(runs_kept_s * 1000))
        self._every_s = every_s

    async def run(self) -> None:
        """Prune now and then, until cancelled: a batch under way is undone."""
        while True:
            await asyncio.sleep(self._every_s * random.uniform(0.8, 1.2))
            try:
                await self.prune()
            except StorageUnavailable as error:
                log.debug("pruning waits for the database: %s", error)

    async def prune(self) -> int:
        """Delete all that is too old now, unless another server is at it; how many notifications
        those were. Raises StorageUnavailable."""
        if not await self._has_turn():
            return 0
        now_ms = int(self._clock.now_ms())
        pruned = await self._prune(await self._history.beginning(now_ms, self._kept_ms))
        oldest = await self._history.beginning(now_ms, self._runs_kept_ms)
        runs = await self._history.prune_runs(oldest)
        if pruned or runs:
            log.info("Pruned %d notifications and %d runs: older than the history", pruned, runs)
        return pruned

    async def _prune(self, before_ms: int) -> int:
        loop, pruned, place = asyncio.get_running_loop(), 0, 0
        while True:
            began = loop.time()
            found, place = await self._history.prune(before_ms, self._channels, place)
            pruned += found
            if found < BATCH:
                return pruned
            await asyncio.sleep(pause_s(loop.time() - began))
            if not await self._has_turn(again=True):
                return pruned

    async def _has_turn(self, *, again: bool = False) -> bool:
        turn = await self._fanout.take_turn(int(self._every_s * 1000), of=_TURN, again=again)
        return turn or not self._fanout.is_up


def pause_s(took_s: float) -> float:
    """The pause (s) after a batch that took so long."""
    return max(_LEAST_PAUSE_S, _IDLE_SHARE * took_s)
