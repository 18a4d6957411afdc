"""Grants that may exist although their askers are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from solocron.clock import Clock
from solocron.errors import LockUnavailable

_PAUSES_S = (0.25, 2.0)  # the first, and the longest they grow to
_LATE_CHECKS = 4


@dataclass
class _Stray:
    """Until `until_s` (monotonic s) the lock `key` may be held by nobody. `checks`: how often a
    "not ours" is not believed yet."""

    key: str
    until_s: float
    checks: int


class Strays:
    """Gives back what may have been granted: `release(key, token)` says whether it was.

    One task, started with `own`, does so for all of them, so that an outage is not met with a crowd
    of reconnects. With `closing` set it tries each once more, and ends.
    """

    def __init__(
        self, release: Callable[[str, str], Awaitable[bool]],
        own: Callable[[Coroutine[Any, Any, None]], object], clock: Clock,
    ) -> None:  # fmt: skip
        self._release = release
        self._own = own
        self._clock = clock
        self._strays: dict[str, _Stray] = {}
        self.closing = False

    def add(self, key: str, token: str, *, until_s: float, late: bool) -> None:
        """Give the lock back until its liveness key ends at `until_s`, at the latest. `late`: the
        request may still be under way, on a connection that was given up."""
        self._strays[token] = _Stray(key, until_s, _LATE_CHECKS if late else 0)
        if len(self._strays) == 1:
            self._own(self._give_back())

    async def _give_back(self) -> None:
        first, longest = _PAUSES_S
        pause = first
        while self._strays:
            try:
                for token in list(self._strays):
                    await self._give_back_one(token)
                pause = first
            except LockUnavailable:
                pause = min(2 * pause, longest)
            if self.closing:
                self._strays.clear()
            now = self._clock.monotonic()
            for token in [t for t, stray in self._strays.items() if stray.until_s <= now]:
                del self._strays[token]
            if self._strays:
                await asyncio.sleep(pause)

    async def _give_back_one(self, token: str) -> None:
        stray = self._strays[token]
        try:
            freed = await self._release(stray.key, token)
        except LockUnavailable:
            stray.checks = _LATE_CHECKS
            raise
        if freed or stray.checks == 0:
            del self._strays[token]
        else:
            stray.checks -= 1
