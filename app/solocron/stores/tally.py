"""How many stores there are, are open, and are due: the jobs would change them if they ran now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from solocron.stores.hours import HoursKey, State, states
from solocron.stores.service import StoreService


@dataclass(frozen=True)
class Tally:
    """Counts of stores: all, the open ones, those that auto-close would close, and those that the
    open reminder would remind."""

    stores: int
    open: int
    to_close: int
    to_remind: int


async def tally(stores: StoreService, now_ms: float) -> Tally:
    """Count them, the hours in a thread. Raises StorageUnavailable."""
    opened = await stores.hours_keys(True)
    closed = await stores.hours_keys(False)
    found = await asyncio.to_thread(states, [*opened, *closed], now_ms)
    return Tally(
        stores=sum(opened.values()) + sum(closed.values()), open=sum(opened.values()),
        to_close=_count(opened, found, "closed"), to_remind=_count(closed, found, "open"),
    )  # fmt: skip


def _count(keys: Mapping[HoursKey, int], found: Mapping[HoursKey, State], state: State) -> int:
    return sum(count for key, count in keys.items() if found[key] == state)
