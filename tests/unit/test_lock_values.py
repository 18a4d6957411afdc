"""Tokens, times to live, and which token a task's release frees."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.errors import ConfigError
from solocron.locks.keys import check_key, check_ttl, companions
from solocron.locks.owned import Owned
from solocron.locks.results import Held, token_tick


@given(st.one_of(st.text(max_size=400), st.text(max_size=20).map(lambda end: f"h:1:a:{end}")))
def test_no_text_in_a_lock_breaks_its_reading(owner: str) -> None:
    tick = Held(owner, 1).tick
    assert tick is None or tick >= 0


def test_a_token_tells_its_tick_and_a_lock_without_one_tells_none() -> None:
    assert token_tick("host:7:ab12:1800000000000") == 1_800_000_000_000
    assert token_tick("host:7:ab12:-1") == -1
    assert Held("host:7:ab12:-1", 1).tick is None
    assert token_tick("locked:123") is None


@pytest.mark.parametrize("ttl", [0, 0.5, -1, math.nan, math.inf, 1e12, 10**400, True, "5000", None])
def test_an_absurd_ttl_is_named(ttl: Any) -> None:
    with pytest.raises(ConfigError, match="ttl_ms is "):
        check_ttl(ttl)


@pytest.mark.parametrize("key", ["", "a b", "a{b}", "a\n", "x" * 201])
def test_a_bad_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match="lock key"):
        check_key(key)


def test_companion_keys_share_the_locks_cluster_slot() -> None:
    assert companions("cron:a") == (
        "{cron:a}:alive", "{cron:a}:settled", "{cron:a}:paused", "{cron:a}:looked",
        "{cron:a}:older", "{cron:a}:reserved",
    )  # fmt: skip


async def test_each_running_task_finds_its_own_token() -> None:
    owned, go = Owned(), asyncio.Event()

    async def first() -> str | None:
        owned.add("k", "first", until_s=1, now_s=0)
        await go.wait()
        return owned.take("k")

    async def second() -> str | None:
        owned.add("k", "second", until_s=3, now_s=2)
        go.set()
        await asyncio.sleep(0)
        return owned.take("k")

    assert await asyncio.gather(first(), second()) == ["first", "second"]
    assert len(owned) == 0


async def test_a_lock_taken_in_an_ended_task_is_released_by_any_other() -> None:
    owned = Owned()

    async def take() -> None:
        owned.add("k", "token", until_s=1, now_s=0)

    await asyncio.create_task(take())
    assert owned.take("k") == "token"
    assert owned.take("k") is None


async def test_locks_that_are_never_released_do_not_pile_up() -> None:
    owned = Owned()

    async def take(number: int) -> None:
        owned.add(f"k{number}", "token", until_s=number, now_s=number)
        owned.add("same", f"token{number}", until_s=number, now_s=number)

    for number in range(5000):
        await asyncio.create_task(take(number))
    assert len(owned) <= 1001
    assert "token4999" in owned and "token0" not in owned
