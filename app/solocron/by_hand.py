"""What of a service its host uses by hand: to run a job now, or to notify."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, overload

from sqlalchemy.ext.asyncio import AsyncConnection

from solocron.cron.manual import Asked, own_tick
from solocron.cron.outcome import Outcome, T
from solocron.cron.registry import Registry
from solocron.cron.run import Run
from solocron.cron.values import merged
from solocron.wiring import Parts


class ByHand:
    """A part of `Solocron`."""

    parts: Parts
    _jobs: Registry

    @overload
    async def run_job(
        self, job: Callable[[Run], Awaitable[T]], params: Mapping[str, Any] | None = None, *,
        by: str = "",
    ) -> Outcome[T]: ...  # fmt: skip

    @overload
    async def run_job(
        self, job: str | Callable[[Run], Any], params: Mapping[str, Any] | None = None, *,
        by: str = "",
    ) -> Outcome: ...  # fmt: skip

    async def run_job(
        self, job: str | Callable[[Run], Any], params: Mapping[str, Any] | None = None, *,
        by: str = "",
    ) -> Outcome[Any]:  # fmt: skip
        """Run a job now, beside its schedule, unless it is running: one by name, or the decorated
        function. `params` are those that differ from the job's own; `by` is who asks, for the
        history. Its notifications are published before this returns; cancelled, it ends. Raises
        UnknownJob, and InvalidInput for wrong parameters."""
        found = self._jobs.named(job) if isinstance(job, str) else self._jobs.of(job)
        asked = Asked(merged(found.name, found.params, params or {}), by)
        tick = own_tick(self.parts.clock.now_ms())
        outcome = await self.parts.runner.run_tick(found, tick, origin="manual", asked=asked)
        await self.parts.relay.flush()
        return outcome

    async def notify(
        self, store_id: str, type: str, data: Mapping[str, Any],
        connection: AsyncConnection | None = None,
    ) -> int:  # fmt: skip
        """Write a notification of one's own for those who watch the store; its seq. `type` is a
        CloudEvents type that does not begin with `store.`, `data` at most 16 KiB of JSON.

        With a `connection` to the service's database it is part of that transaction, and published
        once that is committed: change first and notify last. Raises InvalidInput (of an unknown
        store, too) or StorageUnavailable.
        """
        return await self.parts.notifier(store_id, type, data, connection)
