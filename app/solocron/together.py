"""Questions of many callers, asked together: when a thousand clients come back at once, each would
wait for a database connection of its own, and most of them in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Generic, TypeVar

from solocron.errors import StorageUnavailable

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Question(Generic[_K, _V]):
    """What is to be asked, and what came of it: neither answer nor error if the caller that asked
    it was cancelled."""

    def __init__(self) -> None:
        self.keys: dict[_K, None] = {}
        self.is_led = False
        self.ended = asyncio.Event()
        self.answer: Mapping[_K, _V] | None = None
        self.error: StorageUnavailable | None = None


class Together(Generic[_K, _V]):
    """Calls `ask` for the keys of all who wait: at least one caller's, and no other's once there
    are `most`. It is called after each of them called, so what it reads is no older than that; and
    in one of the `turns`."""

    def __init__(
        self, ask: Callable[[Collection[_K]], Awaitable[Mapping[_K, _V]]], *, most: int,
        turns: asyncio.Semaphore,
    ) -> None:  # fmt: skip
        self._ask = ask
        self._most = most
        self._turns = turns
        self._next: _Question[_K, _V] = _Question()

    async def __call__(self, keys: Iterable[_K]) -> dict[_K, _V]:
        """What `ask` found of these keys. Raises StorageUnavailable if it did."""
        wanted = list(keys)
        if not wanted:
            return {}
        while True:
            question = self._next
            question.keys.update(dict.fromkeys(wanted))
            if len(question.keys) >= self._most:
                self._next = _Question()
            if question.is_led:
                await question.ended.wait()
            else:
                await self._lead(question)
            if question.error is not None:
                raise StorageUnavailable(str(question.error))
            if question.answer is not None:
                answer = question.answer
                return {each: answer[each] for each in wanted if each in answer}

    async def _lead(self, question: _Question[_K, _V]) -> None:
        question.is_led = True
        try:
            async with self._turns:
                await asyncio.sleep(0)  # for those who come in the same turn of the loop
                self._close(question)
                question.answer = await self._ask(question.keys)
        except StorageUnavailable as error:
            question.error = error
        finally:
            self._close(question)
            question.ended.set()

    def _close(self, question: _Question[_K, _V]) -> None:
        """Nobody joins it any more."""
        if self._next is question:
            self._next = _Question()
