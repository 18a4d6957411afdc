"""A run's heart: it extends the lease in the ledger, and notices when there is no ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from solocron.clock import Clock
from solocron.cron.run import Run
from solocron.errors import StorageUnavailable
from solocron.ledger import KEEPERS, Ledger

_SILENT_LEASES = 2


@asynccontextmanager
async def heartbeats(run: Run, ledger: Ledger, clock: Clock, lease_ms: int) -> AsyncIterator[None]:
    """Heartbeats while the enclosed code runs, and none after it."""
    work = _beat(run, ledger, clock, lease_ms / 1000)
    heart = asyncio.create_task(work, name=f"heart of {run.job}@{run.tick}")
    try:
        yield
    finally:
        heart.cancel()
        await asyncio.gather(heart, return_exceptions=True)


async def _beat(run: Run, ledger: Ledger, clock: Clock, lease_s: float) -> None:
    """Extend the ledger's lease at a third of it. The run is lost when it was superseded, or when
    the ledger gave no answer for two leases: others may have one, and get the lock. A fallback
    run has no other lease."""
    due = answered_at = clock.monotonic()
    while True:
        # Of the beats that a frozen process or a suspended machine missed, one is made up for.
        due = max(due + lease_s / 3, clock.monotonic())
        await asyncio.sleep(due - clock.monotonic())
        key = run.key
        try:
            async with asyncio.timeout(lease_s):
                current, sent_at = await _heartbeat(run, ledger, clock, lease_s)
        except (StorageUnavailable, TimeoutError):
            if clock.monotonic() - answered_at > _SILENT_LEASES * lease_s:
                who = KEEPERS[ledger.kept_in]
                run.lease.lose(f"{who} gave no answer for {_SILENT_LEASES} leases")
            continue
        answered_at = sent_at
        if current and run.fallback:
            run.lease.renewed(sent_at)
        elif current is False and key == run.key:
            run.lease.lose("another server took the run over")


async def _heartbeat(
    run: Run, ledger: Ledger, clock: Clock, lease_s: float
) -> tuple[bool | None, float]:
    """Whether the attempt is current, and when that was asked (monotonic s). While the body keeps
    the run's row, in which nobody can take it over, only whether the ledger answers (None): a
    heartbeat would wait for the row with a connection of its own."""
    try:
        async with asyncio.timeout(lease_s / 3):
            await run.turn.acquire()
    except TimeoutError:
        sent_at = clock.monotonic()
        await ledger.answers()
        return None, sent_at
    try:
        sent_at, news = clock.monotonic(), run.news()
        current = await ledger.heartbeat(run.key, int(lease_s * 1000), progress=news)
        run.told(news)
        return current, sent_at
    finally:
        run.turn.release()
