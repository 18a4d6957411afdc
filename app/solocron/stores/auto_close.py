"""Auto-close: stores that are open although their hours ended are closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from solocron.cron.run import Run
from solocron.stores.due import StoreJob
from solocron.stores.hours import HoursKey
from solocron.stores.repository import LooksAhead

_AHEAD = 100_000  # stores found in one look: about 20 MB
_KEYS_AHEAD = 25_000


class AutoClose(StoreJob):
    """The job's body."""

    async def __call__(self, run: Run) -> Mapping[str, int]:
        """Close what is due. Raises what `apply` raises."""
        due = await self.due(run, is_open=True, state="closed")
        repository = self.stores.repository
        if isinstance(repository, LooksAhead):
            return {"closed": await self._close(run, repository, list(due))}
        return {"closed": await self.apply(run, self.stores.close_due, due)}

    async def _close(self, run: Run, stores: LooksAhead, keys: Sequence[HoursKey]) -> int:
        total = 0
        for start in range(0, len(keys), _KEYS_AHEAD):
            some, count = keys[start : start + _KEYS_AHEAD], _AHEAD
            after: str | None = None
            while count == _AHEAD:
                found = await stores.look_ahead(some, after=after, limit=_AHEAD)
                count = len(found)
                for batch in _batches(found, self.batch):
                    total += await self._close_batch(run, batch)
                    after = next(reversed(batch))
        return total

    async def _close_batch(self, run: Run, due: Mapping[str, HoursKey]) -> int:
        now_ms = int(self.clock.now_ms())
        async with run.transaction() as connection:
            rows = await self.stores.close_these(connection, due, tick=run.tick, now_ms=now_ms)
        if rows:
            self.publish(rows)
        return len(rows)


def _batches(found: Mapping[str, HoursKey], size: int) -> Iterator[dict[str, HoursKey]]:
    items = iter(found.items())
    while batch := dict(islice(items, size)):
        yield batch
