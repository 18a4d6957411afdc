"""Auto-close: stores that are open although their hours ended are closed."""

from __future__ import annotations

from collections.abc import Mapping

from solocron.cron.run import Run
from solocron.stores.due import StoreJob


class AutoClose(StoreJob):
    """The job's body."""

    async def __call__(self, run: Run) -> Mapping[str, int]:
        """Close what is due. Raises what `apply` raises."""
        change = self.stores.close_due
        return {"closed": await self.apply(run, change, is_open=True, state="closed")}
