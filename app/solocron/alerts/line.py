"""What waits to be sent to one place, one after the other, by a task of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Line(Generic[_T]):
    """Calls `send`, which raises nothing, for each item in turn; at most `most` wait. Run `run()`
    as a task: cancelled, it goes on for up to `grace_s` while something waits."""

    def __init__(self, send: Callable[[_T], Awaitable[None]], *, most: int, grace_s: float) -> None:
        self._send = send
        self._grace_s = grace_s
        self._waiting: deque[_T] = deque(maxlen=most)
        self._work, self._empty = asyncio.Event(), asyncio.Event()

    def put(self, item: _T) -> bool:
        """Have it sent. False if too much waits: then the oldest is left out."""
        is_full = len(self._waiting) == self._waiting.maxlen
        self._waiting.append(item)
        self._empty.clear()
        self._work.set()
        return not is_full

    async def run(self) -> None:
        """Send until cancelled."""
        sending = asyncio.create_task(self._send_all())
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            if self._waiting:
                await self._emptied(sending)
            raise
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _emptied(self, sending: asyncio.Task[None]) -> None:
        emptied = asyncio.create_task(self._empty.wait())
        try:
            await asyncio.wait(
                [sending, emptied], timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            emptied.cancel()

    async def _send_all(self) -> None:
        while True:
            while self._waiting:
                item = self._waiting[0]
                await self._send(item)
                if self._waiting[0] is item:  # else it was left out meanwhile
                    self._waiting.popleft()
            self._empty.set()
            self._work.clear()
            await self._work.wait()
