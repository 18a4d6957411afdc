"""Connections end with their tokens, all by one timer."""

from __future__ import annotations

import asyncio

from solocron.web.connections import UNAUTHENTICATED, Ends


class Held:
    """A connection that notes when it was closed."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, str]] = []
        self.at = 0.0

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))
        self.at = asyncio.get_running_loop().time()

    def drop(self) -> None:
        raise AssertionError("it is closed, not cut")


async def until_closed(*connections: Held) -> None:
    async with asyncio.timeout(10):
        while not all(each.closed for each in connections):
            await asyncio.sleep(0.01)


async def test_each_ends_when_its_token_does_whatever_the_order_they_came_in() -> None:
    ends, began = Ends(), asyncio.get_running_loop().time()
    late, soon, never, past = Held(), Held(), Held(), Held()
    ends.set(late, 0.3)
    ends.set(soon, 0.1)
    ends.set(never, None)
    ends.set(past, 0.0)
    await until_closed(past, soon)
    assert not late.closed
    await until_closed(late)
    assert soon.at - began >= 0.09 and late.at - began >= 0.29
    for each in (past, soon, late):
        assert each.closed == [(UNAUTHENTICATED, "the token has expired")]
    assert not never.closed


async def test_a_renewed_token_puts_the_end_off_and_who_is_gone_has_none() -> None:
    ends = Ends()
    renewed, gone, other = Held(), Held(), Held()
    for each in (renewed, gone):
        ends.set(each, 0.05)
    ends.set(other, 0.2)
    ends.set(renewed, 60.0)
    ends.forget(gone)
    await until_closed(other)
    assert not renewed.closed and not gone.closed
    ends.set(renewed, None)
    ends.forget(renewed)
    ends.forget(renewed)


async def test_one_timer_waits_for_all_and_none_when_all_are_gone() -> None:
    ends, loop = Ends(), asyncio.get_running_loop()
    waiting = [Held() for _ in range(1000)]
    before = len(loop._scheduled)  # type: ignore[attr-defined]  # the loop's own count
    for number, each in enumerate(waiting):
        ends.set(each, 60.0 + number)
    live = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
    assert len(live) <= before + 1
    for each in waiting:
        ends.forget(each)
    live = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
    assert len(live) <= before
