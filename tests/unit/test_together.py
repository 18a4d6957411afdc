"""What many ask at once is asked together, and an answer is never older than its question."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from solocron.errors import StorageUnavailable
from solocron.together import Together


class Source:
    """Doubles what is even and knows nothing else, when `open` lets it; `asked` so far."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, keys: Collection[int]) -> dict[int, int]:
        self.asked.append(list(keys))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return {key: 2 * key for key in keys if key % 2 == 0}


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def ask(together: Together[int, int], *keys: int) -> asyncio.Task[dict[int, int]]:
    return asyncio.create_task(together(keys))


async def test_those_who_ask_while_an_answer_is_on_its_way_share_the_next() -> None:
    source = Source()
    together = Together(source, most=1000, turns=asyncio.Semaphore(2))
    first = [ask(together, 2)]
    await turns()
    first.append(ask(together, 4))  # the second of two that are asked at once
    await turns()
    rest = [ask(together, key, 1) for key in range(100, 200)]
    await turns()
    assert source.asked == [[2], [4]]
    source.open.set()
    assert await asyncio.gather(*first) == [{2: 4}, {4: 8}]
    for key, answer in zip(range(100, 200), await asyncio.gather(*rest), strict=True):
        assert answer == ({key: 2 * key} if key % 2 == 0 else {})
    assert len(source.asked) == 3 and len(source.asked[2]) == 101


async def test_a_question_that_is_being_asked_is_joined_by_nobody() -> None:
    source = Source()
    together = Together(source, most=1000, turns=asyncio.Semaphore(2))
    one = ask(together, 2)
    await turns()
    other = ask(together, 2)
    await turns()
    source.open.set()
    await asyncio.gather(one, other)
    assert source.asked == [[2], [2]]


async def test_no_more_are_asked_together_than_is_said() -> None:
    source = Source()
    source.open.set()
    together = Together(source, most=10, turns=asyncio.Semaphore(2))
    answers = await asyncio.gather(*(together([key]) for key in range(0, 200, 2)))
    assert answers == [{key: 2 * key} for key in range(0, 200, 2)]
    assert [len(keys) for keys in source.asked] == [10] * 10


@pytest.mark.parametrize("held_up", [0, 2])
async def test_when_who_asks_is_cancelled_another_asks(held_up: int) -> None:
    source = Source()
    together = Together(source, most=1000, turns=asyncio.Semaphore(2))
    before = []
    for key in range(held_up):  # so that the leader is cancelled while it waits for its turn
        before.append(ask(together, key))
        await turns()
    leader, *others = [ask(together, key) for key in (2, 4, 6)]
    await turns()
    leader.cancel()
    await turns()
    source.open.set()
    assert await asyncio.gather(*others) == [{4: 8}, {6: 12}]
    assert leader.cancelled()
    await asyncio.gather(*before)


async def test_an_error_is_told_to_all_who_asked_and_to_nobody_after_them() -> None:
    source = Source()
    source.open.set()
    source.error = StorageUnavailable("the database is away")
    together = Together(source, most=1000, turns=asyncio.Semaphore(2))
    answers = await asyncio.gather(*(together([key]) for key in range(9)), return_exceptions=True)
    assert {str(each) for each in answers} == {"the database is away"}
    assert len(source.asked) == 1
    source.error = None
    assert await together([2]) == {2: 4}


async def test_nothing_is_asked_for_nothing() -> None:
    source = Source()
    assert await Together(source, most=10, turns=asyncio.Semaphore(2))([]) == {}
    assert source.asked == []
