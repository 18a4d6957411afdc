"""What both jobs do: find the hours that are due, then change their stores batch by batch.

Each batch is one fenced transaction, so a run that lost its lease stops between two of them: what
it committed stays, and its successor finds only the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.clock import Clock
from solocron.cron.run import Run
from solocron.errors import InvalidInput
from solocron.storage.outbox import Notification
from solocron.stores.hours import HoursKey, State, check_hours, states
from solocron.stores.service import Batch, StoreService

Publish = Callable[[Sequence[Notification]], None]

_KEYS_PER_STATEMENT = 100
_KEYS_ON_THE_LOOP = 200  # about 2.5 ms of work; more goes to a thread


class Change(Protocol):
    """`StoreService.close_due` or `remind_due`."""

    async def __call__(
        self,
        connection: AsyncConnection,
        keys: Sequence[HoursKey],
        *,
        tick: int,
        now_ms: int,
        limit: int,
        after: str | None,
    ) -> Batch: ...


@dataclass(frozen=True)
class StoreJob:
    """What both bodies are made of. `publish` is given each batch once it is committed; `batch`
    is the most stores changed in one transaction."""

    stores: StoreService
    clock: Clock
    publish: Publish
    batch: int = 500

    async def apply(self, run: Run, change: Change, due: Mapping[HoursKey, int]) -> int:
        """Apply `change` to the stores with these keys, of which so many are due; how many changed.

        Raises StaleAttempt, LeaseLost or StorageUnavailable; batches committed before that stay.
        """
        total = 0
        for group in _groups(due, self.batch):
            last: str | None = None
            while True:
                async with run.transaction() as connection:
                    rows, last = await change(
                        connection, group, tick=run.tick, now_ms=int(self.clock.now_ms()),
                        limit=self.batch, after=last,
                    )  # fmt: skip
                if rows:
                    self.publish(rows)
                total += len(rows)
                if last is None:
                    break
        return total

    async def due(self, run: Run, *, is_open: bool, state: State) -> dict[HoursKey, int]:
        """The keys of the open (or closed) stores whose hours say `state`, and how many share each.

        "Now" is never before the tick, however far behind this server's clock is.
        """
        counts = await self.stores.hours_keys(is_open)
        at_ms = max(self.clock.now_ms(), run.tick)
        if len(counts) > _KEYS_ON_THE_LOOP:
            found = await asyncio.to_thread(states, counts, at_ms)
        else:
            found = states(counts, at_ms)
        _warn_of_broken(run, [key for key in counts if found[key] == "unknown"])
        return {key: count for key, count in counts.items() if found[key] == state}


def _warn_of_broken(run: Run, unknown: Sequence[HoursKey]) -> None:
    for key in unknown:
        try:
            check_hours(*key)
        except InvalidInput as error:
            run.log.warning("Stores are left as they are: %s", error)


def _groups(keys: Mapping[HoursKey, int], batch: int) -> Iterator[list[HoursKey]]:
    """Keys in lots of about one batch of stores, so that no statement looks at many rows it
    will not change; a key with more stands alone."""
    group: list[HoursKey] = []
    size = 0
    for key, count in keys.items():
        if group and (size + count > batch or len(group) == _KEYS_PER_STATEMENT):
            yield group
            group, size = [], 0
        group.append(key)
        size += count
    if group:
        yield group
