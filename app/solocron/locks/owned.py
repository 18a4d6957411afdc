"""Which token `acquire_lock` took for which task, so that `release_lock` frees only its own.

The original's functions name a lock by its key alone. In one process task A's lock may have
expired and task B may hold the key by now: A's release must then find A's token, not B's.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass
from typing import Any

_PRUNE_AT = 1000


@dataclass(frozen=True)
class _Taken:
    token: str
    until_s: float
    task: weakref.ref[asyncio.Task[Any]] | None

    @property
    def by(self) -> asyncio.Task[Any] | None:
        """The task that took it, while it runs."""
        task = self.task() if self.task is not None else None
        return None if task is None or task.done() else task


class Owned:
    """Tokens by key. Holds at most one per key and running task, and one per key besides."""

    def __init__(self) -> None:
        self._taken: dict[str, list[_Taken]] = {}
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        return sum(len(each) for each in self._taken.values())

    def __contains__(self, token: str) -> bool:
        return any(token == each.token for taken in self._taken.values() for each in taken)

    def add(self, key: str, token: str, until_s: float, now_s: float) -> None:
        """Note a grant that ends at `until_s` (monotonic s). Earlier tokens of the key are dead,
        and are kept only for the running tasks that will still release them."""
        task = asyncio.current_task()
        kept = [each for each in self._taken.get(key, []) if each.by not in (None, task)]
        taken = _Taken(token, until_s, weakref.ref(task) if task else None)
        self._taken[key] = [*kept, taken]
        if len(self._taken) >= self._prune_at:
            self._prune(now_s)

    def take(self, key: str) -> str | None:
        """Forget and return the token this task took; else the newest one of this process."""
        taken = self._taken.get(key)
        if not taken:
            return None
        task = asyncio.current_task()
        found = next((each for each in taken if task is not None and each.by is task), taken[-1])
        taken.remove(found)
        if not taken:
            del self._taken[key]
        return found.token

    def _prune(self, now_s: float) -> None:
        """Drop keys whose locks expired unreleased and whose tasks have ended."""
        for key, taken in list(self._taken.items()):
            if all(each.by is None and each.until_s <= now_s for each in taken):
                del self._taken[key]
        self._prune_at = max(_PRUNE_AT, 2 * len(self._taken))
