"""Open reminder: stores that are closed although their hours say open are told so, once a tick."""

from __future__ import annotations

from collections.abc import Mapping

from solocron.cron.run import Run
from solocron.stores.due import StoreJob


class OpenReminder(StoreJob):
    """The job's body."""

    async def __call__(self, run: Run) -> Mapping[str, int]:
        """Remind who is due. Raises what `apply` raises."""
        due = await self.due(run, is_open=False, state="open")
        return {"reminded": await self.apply(run, self.stores.remind_due, due)}
