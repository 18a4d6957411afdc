"""Auto-close and open reminder: each store once, whatever happens to the run."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, select

from shops import own_stores
from shops import put_all as put_many
from solocron.clock import SystemClock
from solocron.cron.run import Run
from solocron.errors import LeaseLost, StaleAttempt
from solocron.ledger import RunKey
from solocron.locks.lease import Lease
from solocron.storage.engine import Database
from solocron.storage.outbox import Notification
from solocron.storage.runs import RunLedger
from solocron.storage.tables import notifications, store_states, stores
from solocron.stores.auto_close import AutoClose
from solocron.stores.model import Store
from solocron.stores.open_reminder import OpenReminder
from solocron.stores.service import StoreService

TICK = 1_777_010_400_000  # Friday 2026-04-24 06:00 UTC
OPEN_NOW, CLOSED_NOW, UNKNOWN = "Mo-Fr 05:00-18:00", "Sa 10:00-18:00", "Mo-Fr 05:00-18:00 unknown"


class At(SystemClock):
    """A clock that stands still."""

    def __init__(self, now_ms: float = TICK + 50) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> float:
        return self._now_ms


class Published(list[Notification]):
    """What was published, and in which batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __call__(self, rows: Sequence[Notification]) -> None:
        self.batches.append(len(rows))
        self.extend(rows)


@pytest.fixture
def repository(database: Database) -> StoreService:
    return own_stores(database)


@asynccontextmanager
async def attempt(
    database: Database, tick: int = TICK, *, job: str = "job", lease_ms: int = 60_000
) -> AsyncIterator[Run]:
    """The next attempt of the tick; the ledger may take it over at once when `lease_ms` is 0."""
    ledger, clock = RunLedger(database), SystemClock()
    verdict = await ledger.begin(
        job, tick, owner="here", now_ms=TICK, lease_ms=lease_ms, max_attempts=99
    )
    assert verdict.kind == "run"
    lease = Lease(
        "cron:job", "token", ttl_ms=60_000, lease_ms=60_000, sent_at_s=clock.monotonic(),
        clock=clock,
    )  # fmt: skip
    yield Run(RunKey(job, tick, verdict.attempt), ledger=ledger, lease=lease, fallback=False)
    lease.close()


async def put_all(database: Database, rows: Iterable[Store]) -> None:
    await put_many(database, rows, TICK)


def store(store_id: str, hours: str, *, is_open: bool) -> Store:
    return Store(store_id, f"Store {store_id}", "UTC", hours, "", is_open)


async def told(database: Database) -> dict[str, list[tuple[int, str]]]:
    """The notifications of each store in order, after checking that none is missing."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    async with database.connect() as connection:
        query = select(notifications).order_by(notifications.c.store_id, notifications.c.seq)
        for row in await connection.execute(query):
            found[row.store_id].append((row.seq, row.type))
        for row in await connection.execute(select(store_states)):
            assert [seq for seq, _ in found[row.store_id]] == list(
                range(1, row.notification_seq + 1)
            )
    return {store_id: rows for store_id, rows in found.items() if rows}


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL sent meanwhile."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def test_stores_whose_hours_ended_are_closed_once(
    database: Database, repository: StoreService
) -> None:
    await put_all(database, [
        store("late", CLOSED_NOW, is_open=True), store("busy", OPEN_NOW, is_open=True),
        store("maybe", UNKNOWN, is_open=True), store("shut", CLOSED_NOW, is_open=False),
    ])  # fmt: skip
    published = Published()
    job = AutoClose(repository, At(), published)
    async with attempt(database, lease_ms=0) as run:
        assert await job(run) == {"closed": 1}
        assert await job(run) == {"closed": 0}
    async with attempt(database) as again:
        assert (again.attempt, await job(again)) == (2, {"closed": 0})
    async with attempt(database, TICK + 1) as later:
        assert await job(later) == {"closed": 0}
    assert list(published) == [
        Notification(
            "late", 1, "store.closed",
            {"name": "Store late", "reason": "hours-ended", "tick": "2026-04-24T06:00:00.000Z"},
            TICK + 50,
        )
    ]  # fmt: skip
    assert await told(database) == {"late": [(1, "store.closed")]}
    open_ids = [each.id for each in await repository.page(is_open=True)]
    assert open_ids == ["busy", "maybe"]


async def test_closed_stores_are_reminded_once_a_tick(
    database: Database, repository: StoreService
) -> None:
    await put_all(database, [
        store("asleep", OPEN_NOW, is_open=False), store("busy", OPEN_NOW, is_open=True),
        store("maybe", UNKNOWN, is_open=False), store("shut", CLOSED_NOW, is_open=False),
    ])  # fmt: skip
    published = Published()
    job = OpenReminder(repository, At(), published)
    for expected in (1, 0, 0):
        async with attempt(database, lease_ms=0) as run:
            assert await job(run) == {"reminded": expected}
    async with attempt(database, TICK + 1_800_000) as later:
        assert await job(later) == {"reminded": 1}
    assert await told(database) == {"asleep": [(n, "store.open-reminder") for n in (1, 2)]}
    assert published[1].data == {"name": "Store asleep", "tick": "2026-04-24T06:30:00.000Z"}


@pytest.mark.parametrize(("now_ms", "closed"), [(TICK - 1, 1), (TICK + 7_200_000, 0)])
async def test_hours_are_judged_now_but_never_before_the_tick(
    database: Database, repository: StoreService, now_ms: int, closed: int
) -> None:
    until_the_tick_and_again_later = "Fr 00:00-06:00,08:00-12:00"
    await put_all(database, [store("a", until_the_tick_and_again_later, is_open=True)])
    async with attempt(database) as run:
        assert await AutoClose(repository, At(now_ms), Published())(run) == {"closed": closed}


async def test_nothing_due_is_one_query(database: Database, repository: StoreService) -> None:
    await put_all(database, [store("busy", OPEN_NOW, is_open=True)])
    async with attempt(database) as run:
        with statements() as sent:
            assert await AutoClose(repository, At(), Published())(run) == {"closed": 0}
    assert len(sent) == 1 and sent[0].startswith("SELECT")


@pytest.mark.parametrize("distinct", [1, 30, 3000])
async def test_ten_thousand_stores_close_in_bounded_batches(
    database: Database, repository: StoreService, distinct: int
) -> None:
    hours = [f'Sa 10:00-18:00 "{n}"' for n in range(distinct)]
    await put_all(
        database, (store(f"s{n}", hours[n % distinct], is_open=True) for n in range(10_000))
    )
    await put_all(database, (store(f"t{n}", OPEN_NOW, is_open=True) for n in range(700)))
    published = Published()
    async with attempt(database) as run:
        assert await AutoClose(repository, At(), published)(run) == {"closed": 10_000}
    assert max(published.batches) <= 500
    assert len({each.store_id for each in published}) == len(published) == 10_000
    assert len(await told(database)) == 10_000
    async with database.connect() as connection:
        query = select(func.count()).where(stores.c.is_open)
        assert (await connection.execute(query)).scalar() == 700


async def test_hours_that_cannot_be_read_stop_no_other_store(
    database: Database, repository: StoreService, caplog: pytest.LogCaptureFixture
) -> None:
    await put_all(database, [store("late", CLOSED_NOW, is_open=True)])
    async with database.begin() as connection:
        await connection.execute(
            insert(stores).values(
                id="odd", name="", timezone="Nowhere", hours="", is_open=True, updated_at=0
            )
        )
    async with attempt(database) as run:
        assert await AutoClose(repository, At(), Published())(run) == {"closed": 1}
    assert "timezone 'Nowhere'" in caplog.text


def take_over(url: str) -> Callable[[], None]:
    """Another server, on a thread of its own, that becomes the tick's next attempt."""

    async def other() -> None:
        database = Database(url)
        verdict = await RunLedger(database).begin(
            "job", TICK, owner="there", now_ms=TICK, lease_ms=0, max_attempts=99
        )
        assert verdict.kind == "run"
        await database.close()

    def run() -> None:
        thread = threading.Thread(target=asyncio.run, args=(other(),))
        thread.start()
        thread.join()

    return run


@pytest.mark.parametrize("job_type", [AutoClose, OpenReminder])
async def test_a_run_taken_over_between_batches_writes_no_more(
    database: Database,
    database_url: str,
    repository: StoreService,
    job_type: type[AutoClose] | type[OpenReminder],
) -> None:
    closing = job_type is AutoClose
    hours = CLOSED_NOW if closing else OPEN_NOW
    await put_all(database, (store(f"s{n}", hours, is_open=closing) for n in range(50)))
    published = Published()

    def publish(rows: Sequence[Notification]) -> None:
        published(rows)
        if len(published.batches) == 2:
            take_over(database_url)()

    async with attempt(database, lease_ms=0) as run:
        with pytest.raises(StaleAttempt):
            await job_type(repository, At(), publish, batch=10)(run)
    assert published.batches == [10, 10]
    assert {each.store_id for each in published} == set(await told(database))
    async with attempt(database) as successor:
        assert successor.attempt == 3
        counts = await job_type(repository, At(), published, batch=10)(successor)
        assert list(counts.values()) == [30]
    assert {len(rows) for rows in (await told(database)).values()} == {1}
    assert len({each.store_id for each in published}) == len(published) == 50


async def test_a_lost_lease_stops_before_the_next_batch(
    database: Database, repository: StoreService
) -> None:
    await put_all(database, (store(f"s{n}", CLOSED_NOW, is_open=True) for n in range(30)))
    async with attempt(database) as run:
        with pytest.raises(LeaseLost):
            job = AutoClose(repository, At(), lambda rows: run.lease.lose("stolen"), batch=10)
            await job(run)
    assert len(await told(database)) == 10


async def test_owners_and_the_job_change_the_same_stores_at_once(
    database: Database, repository: StoreService
) -> None:
    """Per store: numbers without a gap, opened and closed in turn, ending with what it is."""
    names = [f"s{n}" for n in range(12)]
    await put_all(database, (store(name, CLOSED_NOW, is_open=True) for name in names))
    published = Published()

    async def owner(offset: int) -> None:
        for n in range(40):
            name = names[(n * 5 + offset) % len(names)]
            _, rows = await repository.set_open(name, (n + offset) % 3 > 0, TICK)
            published.extend(rows)

    async def job() -> None:
        for n in range(25):
            async with attempt(database, TICK + n) as run:
                await AutoClose(repository, At(), published, batch=5)(run)

    await asyncio.gather(owner(0), owner(1), owner(2), job())
    written = await told(database)
    assert sum(map(len, written.values())) == len(published)
    for name, rows in written.items():
        kinds = [kind for _, kind in rows]
        assert kinds == (["store.closed", "store.opened"] * len(kinds))[: len(kinds)]
        assert (await repository.get(name)).is_open == (kinds[-1] == "store.opened")


async def test_both_jobs_and_an_import_at_once(
    database: Database, repository: StoreService
) -> None:
    rows = [store(f"c{n}", CLOSED_NOW, is_open=True) for n in range(200)]
    rows += [store(f"o{n}", OPEN_NOW, is_open=False) for n in range(200)]
    await put_all(database, rows)

    async def run_job(job: AutoClose | OpenReminder, name: str) -> None:
        async with attempt(database, job=name) as run:
            await job(run)

    await asyncio.gather(
        run_job(AutoClose(repository, At(), Published(), batch=20), "close"),
        run_job(OpenReminder(repository, At(), Published(), batch=20), "remind"),
        put_all(database, rows),
        put_all(database, reversed(rows)),
    )
    written = await told(database)
    assert len(written) == 400 and {len(each) for each in written.values()} == {1}
