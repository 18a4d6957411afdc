"""A reading that is costly, so that it is not made anew for each who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """What `read` gives, read when it is asked for, by one at a time and at most every `every_s` s.
    What `read` raises is raised, and not kept."""

    def __init__(self, read: Callable[[], Awaitable[_T]], every_s: float) -> None:
        self._read = read
        self._every_s = every_s
        self._reading = asyncio.Lock()
        self._found: tuple[float, _T] | None = None

    def forget(self) -> None:
        """Read anew when it is asked for next: it has changed."""
        self._found = None

    async def get(self) -> _T:
        """The newest reading."""
        async with self._reading:
            now_s = asyncio.get_running_loop().time()
            if self._found is None or now_s >= self._found[0] + self._every_s:
                self._found = now_s, await self._read()
            return self._found[1]
