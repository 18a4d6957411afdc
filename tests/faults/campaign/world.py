"""What a campaign's workers work on: the stores, the table of effects, and how both are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select, text

from faults.campaign.check import Effect
from shops import CLOSED_NOW
from solocron.notifications.event import STORE_OPEN_REMINDER
from solocron.storage.engine import Database
from solocron.storage.outbox import notification
from solocron.storage.tables import job_runs, notifications, store_states, stores
from solocron.stores.hours import HoursKey

JOB = "campaign"
EPOCH = 1_800_000_000_000  # what the workers' clocks showed when the first of them was started
STEP_MS = 1000
RATE = 10.0  # the workers' clocks: a tick each 100 ms
OPEN_KEY = HoursKey("24/7", "UTC", "")
CLOSERS = CLOSED_NOW
AUTO_CLOSE = "*/10 * * * * *"
REOPEN_EVERY = 15  # ticks
SHOPS = [f"shop-{n}" for n in range(6)]
ALL = [*SHOPS, *(f"closer-{n}" for n in range(4))]

# No constraint forbids a second effect of a tick: a doubled one is to be seen.
_EFFECTS = (
    "CREATE TABLE effects (id BIGSERIAL PRIMARY KEY, tick BIGINT NOT NULL, attempt INT NOT NULL, "
    "worker TEXT NOT NULL, applied BOOLEAN NOT NULL, notes INT NOT NULL, at_ms FLOAT NOT NULL)",
    "CREATE INDEX effects_tick ON effects (tick)",
    "CREATE TABLE halted (halted BOOLEAN)",
)


async def prepare(database: Database) -> None:
    """Migrate, add the stores and the table of effects."""
    await database.migrate()
    async with database.begin() as connection:
        for statement in _EFFECTS:
            await connection.execute(text(statement))
        for each in ALL:
            hours = OPEN_KEY.hours if each in SHOPS else CLOSERS
            values = {"id": each, "name": each, "timezone": "UTC", "hours": hours, "updated_at": 0}
            await connection.execute(insert(stores).values(**values, is_open=each not in SHOPS))


async def halt(database: Database) -> None:
    """Ticks go on, but change no store once this returns: it waits for those under way."""
    async with database.begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = 0"))  # the last fault left some
        await connection.execute(text("LOCK TABLE halted IN ACCESS EXCLUSIVE MODE"))
        await connection.execute(text("INSERT INTO halted VALUES (true)"))


@dataclass(frozen=True)
class Backlog:
    """What is still to be done: ticks of the window, notifications to publish, stores to close;
    and the newest seq of each store."""

    ticks: int
    unpublished: int
    still_open: int
    counters: Mapping[str, int]

    @property
    def is_done(self) -> bool:
        return not (self.ticks or self.unpublished or self.still_open)


async def backlog(database: Database, first: int, last: int) -> Backlog:
    """What the servers have still to do, the window being the ticks from `first` to `last`."""
    in_window = (job_runs.c.job == JOB) & job_runs.c.tick.between(first, last)
    queries = (
        select(func.count()).where(in_window, job_runs.c.state == "succeeded"),
        select(func.count()).where(notifications.c.published_at.is_(None)),
        select(func.count()).where(stores.c.is_open),
    )
    async with database.connect() as connection:
        done, unpublished, still_open = [
            int((await connection.execute(query)).scalar_one()) for query in queries
        ]
        heads = await connection.execute(select(store_states))
        counters = {row.store_id: row.notification_seq for row in heads}
    return Backlog((last - first) // STEP_MS + 1 - done, unpublished, still_open, counters)


@dataclass(frozen=True)
class Tables:
    """All that the database says, for the checker."""

    ledger: Mapping[int, tuple[int, str]]
    effects: Sequence[Effect]
    told: Sequence[tuple[int, str]]
    table: Mapping[str, Sequence[int]]


async def read(database: Database) -> Tables:
    """The ledger of the campaign's job, its effects, and every notification."""
    async with database.connect() as connection:
        runs = await connection.execute(select(job_runs).where(job_runs.c.job == JOB))
        ledger = {row.tick: (row.attempt, row.state) for row in runs}
        columns = "tick, attempt, applied, notes, at_ms"
        rows = await connection.execute(text(f"SELECT {columns} FROM effects ORDER BY id"))  # noqa: S608
        effects = [Effect(*row) for row in rows]
        told, table = [], defaultdict[str, list[int]](list)
        for row in await connection.execute(select(notifications)):
            note = notification(row)
            table[note.store_id].append(note.seq)
            if note.type == STORE_OPEN_REMINDER:
                moment = datetime.fromisoformat(note.data["tick"])
                told.append((round(moment.timestamp() * 1000), note.store_id))
    return Tables(ledger, effects, told, table)
