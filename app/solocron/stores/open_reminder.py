"""Open reminder: stores that are closed although their hours say open are told so, once a tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from solocron.clock import Clock
from solocron.cron.run import Run
from solocron.stores.due import Publish, due_keys, in_batches
from solocron.stores.repository import StoreRepository


@dataclass(frozen=True)
class OpenReminder:
    """The job's body. `publish` is given each batch once it is committed."""

    repository: StoreRepository
    clock: Clock
    publish: Publish
    batch: int = 500

    async def __call__(self, run: Run) -> Mapping[str, int]:
        """Remind who is due. Raises StaleAttempt, LeaseLost or StorageUnavailable; batches
        committed before that stay."""
        keys = await due_keys(run, self.repository, self.clock, is_open=False, state="open")
        reminded = await in_batches(
            run, keys, self.repository.remind_due,
            clock=self.clock, publish=self.publish, batch=self.batch,
        )  # fmt: skip
        return {"reminded": reminded}
