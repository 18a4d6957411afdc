"""Waiting for the database: for a turn with it, and for its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from solocron.errors import StorageUnavailable

log = logging.getLogger("solocron.storage")

_PAUSES_S = (0.2, 1.0, 3.0)
_PATIENCE_S = 5.0

_T = TypeVar("_T")


@asynccontextmanager
async def held(
    turn: asyncio.Lock | asyncio.Semaphore, within_s: float, complaint: str
) -> AsyncIterator[None]:
    """Have the turn while the enclosed code runs; StorageUnavailable with the complaint when it is
    not had within `within_s` s."""
    try:
        async with asyncio.timeout(within_s):
            await turn.acquire()
    except TimeoutError:
        raise StorageUnavailable(complaint) from None
    try:
        yield
    finally:
        turn.release()


async def patiently(operation: Callable[[], Awaitable[_T]]) -> _T:
    """Try again, for a few seconds, what may be done twice; not after a wait for a lock or a
    connection that was as long."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_S
    for pause in _PAUSES_S:
        try:
            return await operation()
        except StorageUnavailable:
            if loop.time() + pause > until:
                raise
        await asyncio.sleep(pause)
    return await operation()


async def until_answered(operation: Callable[[], Awaitable[_T]], what: str) -> _T:
    """Try again what may be done twice until the database answers: a lost lease or the end of the
    process ends it, by cancellation."""
    level = logging.WARNING
    while True:
        try:
            return await patiently(operation)
        except StorageUnavailable as error:
            log.log(level, "%s waits for its ledger: %s", what, error)
            level = logging.DEBUG
            await asyncio.sleep(_PAUSES_S[-1])
