"""Ledgers of each kind, for what must hold of all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conftest import fresh_database
from solocron.clock import Clock, SystemClock
from solocron.ledger import Ledger
from solocron.locks.manager import LockManager
from solocron.locks.run_records import RunRecords
from solocron.storage.engine import Database
from solocron.storage.runs import RunLedger

NONE = "none"  # the URL of no database: the ledger is in Redis


def ledger_of(database: Database | None, locks: LockManager, clock: Clock | None = None) -> Ledger:
    """The database's ledger, or, without one, that of a server whose locks are `locks`."""
    if database is not None:
        return RunLedger(database)
    return RunRecords(
        locks, clock=clock or SystemClock(), owner="w", environment="", keep_ms=86_400_000
    )


@asynccontextmanager
async def ledger_at(database_url: str, redis_url: str) -> AsyncIterator[Ledger]:
    """The ledger of the servers there, by connections of its own."""
    async with LockManager(redis_url) as locks:
        if database_url == NONE:
            yield ledger_of(None, locks)
            return
        async with fresh_database(database_url) as database:
            yield ledger_of(database, locks)
