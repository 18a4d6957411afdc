"""Stores for the tests: some to be closed, and what became of them in the tables."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import aiohttp
from sqlalchemy import func, insert, select

from solocron.storage.engine import Database
from solocron.storage.tables import job_runs, notifications, stores
from solocron.stores.model import Store
from solocron.stores.service import StoreService
from solocron.stores.table import StoreTable

CLOSED_NOW = "Mo-Su 00:00-24:00 off"


def own_stores(database: Database, channels: Sequence[str] = ()) -> StoreService:
    """The stores in solocron's own table."""
    return StoreService(StoreTable().on(database), database, channels)


async def put_all(database: Database, rows: Iterable[Store], now_ms: int) -> None:
    """Write these stores into it."""
    async with database.begin() as connection:
        await StoreTable().on(database).put_many(connection, list(rows), now_ms)


async def open_shops(database: Database, count: int) -> list[str]:
    """Add `count` open stores whose hours say closed; their ids."""
    ids = [f"shop-{number:05d}" for number in range(count)]
    async with database.begin() as connection:
        await connection.execute(
            insert(stores),
            [
                {"id": each, "name": each, "timezone": "UTC", "hours": CLOSED_NOW,
                 "is_open": True, "updated_at": 0}
                for each in ids
            ],
        )  # fmt: skip
    return ids


async def change_stores(port: int, shops: list[str], count: int) -> None:
    """Ask the server on `port` to close and open stores by turns, in any order of the stores."""
    is_open = dict.fromkeys(shops, True)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for _ in range(count):
            shop = random.choice(shops)
            is_open[shop] = not is_open[shop]
            action = "open" if is_open[shop] else "close"
            async with http.post(f"/api/v1/stores/{shop}/{action}") as answer:
                assert answer.status == 200


async def still_open(database: Database) -> int:
    """How many stores are open."""
    async with database.connect() as connection:
        query = select(func.count()).select_from(stores).where(stores.c.is_open)
        return int((await connection.execute(query)).scalar_one())


async def closings(database: Database) -> list[tuple[str, int]]:
    """(store, seq) of every notification in the table."""
    async with database.connect() as connection:
        query = select(notifications.c.store_id, notifications.c.seq).order_by(
            notifications.c.store_id, notifications.c.seq
        )
        return [(row.store_id, row.seq) for row in await connection.execute(query)]


async def runs(database: Database, job: str) -> list[tuple[int, int, str]]:
    """(tick, attempt, state) of the job's runs, oldest first."""
    async with database.connect() as connection:
        query = select(job_runs.c.tick, job_runs.c.attempt, job_runs.c.state).where(
            job_runs.c.job == job
        ).order_by(job_runs.c.tick)  # fmt: skip
        return [(row.tick, row.attempt, row.state) for row in await connection.execute(query)]
