"""The history ends: what is old and settled goes, all else stays, clients are told."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

import zygote
from conftest import RedisServer
from peers import Peer
from plans import statements
from servers import Commit, Server, with_stores
from shops import closings, runs
from solocron.clock import SystemClock
from solocron.notifications import retention as retention_module
from solocron.notifications.fanout import Fanout
from solocron.notifications.retention import Retention, pause_s
from solocron.service import Solocron
from solocron.storage.engine import Database
from solocron.storage.feed import EVERY
from solocron.storage.history import BATCH, History
from solocron.storage.outbox import Notification, Outbox
from solocron.storage.tables import deliveries, job_runs, notifications
from workers import until

STORES = ("a", "b", "c")
HOUR_S, HOUR, DAY = 3600, 3_600_000, 24 * 3_600_000
CLOCK = SystemClock()
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with with_stores(database_url, *STORES) as database:
        yield database


def retention(
    database: Database, redis: str = NOWHERE, channels: Sequence[str] = (), **options: Any
) -> Retention:
    """One that keeps an hour; without Redis it never has to wait for its turn."""
    fanout = Fanout(redis, environment="", clock=CLOCK, deadline_s=0.5)
    return Retention(
        History(database), fanout, CLOCK, channels=channels, kept_s=HOUR_S, **options
    )  # fmt: skip


async def settle(database: Database, rows: Sequence[Notification]) -> None:
    outbox = Outbox(database)
    await outbox.number()
    await outbox.mark_published(rows, 1)


async def old(database: Database, store: str, count: int, *channels: str) -> list[Notification]:
    """The next `count` of a store, two hours old, published and numbered; what is to be delivered
    on `channels` is due since then."""
    rows = await Commit(database)(store, count, 2 * HOUR, channels)
    await settle(database, rows)
    async with database.begin() as connection:
        await connection.execute(update(deliveries).values(due_at=rows[0].created_at))
    return rows


async def finished(database: Database, state: str) -> None:
    async with database.begin() as connection:
        await connection.execute(update(deliveries).values(state=state, due_at=None))


async def size(database: Database, table: Any) -> int:
    async with database.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


# -- what goes and what stays ----------------------------------------------------------------


@pytest.mark.parametrize("state", ["sent", "dead", "skipped"])
async def test_what_is_old_and_settled_goes_with_its_deliveries_and_numbers_go_on(
    database: Database, state: str
) -> None:
    await old(database, "a", 3, "mail", "sms")
    await old(database, "b", 2)
    await finished(database, state)
    fresh = await Commit(database)("a", 1, HOUR - 60_000)
    await settle(database, fresh)
    assert await retention(database, channels=["mail"]).prune() == 5
    assert await closings(database) == [("a", 4)]
    assert await size(database, deliveries) == 0
    assert [each.seq for each in await Commit(database)("b")] == [3]
    outbox = Outbox(database)
    assert await outbox.heads(["a", "b", EVERY]) == {"a": 4, "b": 3, EVERY: 7}
    assert await outbox.oldest(["a", "b", EVERY]) == {"a": 4, "b": 3, EVERY: 6}


async def test_what_is_not_published_or_not_numbered_stays(database: Database) -> None:
    outbox = Outbox(database)
    await Commit(database)("a", 2, 2 * HOUR)
    await outbox.number()
    published = await Commit(database)("b", 2, 2 * HOUR)
    async with database.begin() as connection:
        await connection.execute(
            update(notifications).where(notifications.c.store_id == "b").values(published_at=1)
        )
    assert await retention(database).prune() == 0
    assert await size(database, notifications) == 4
    await outbox.mark_published(published, 1)  # which numbers them
    assert await retention(database).prune() == 2
    assert await closings(database) == [("a", 1), ("a", 2)]


@pytest.mark.parametrize("state", ["pending", "sending"])
@pytest.mark.parametrize(
    ("channels", "due_h", "stays"),
    [
        (["mail"], -2, True),  # it is ours
        (["mail"], 1, True),
        ([], 1, True),  # another server tries it
        ([], -0.5, True),
        (["sms"], -2, False),  # nobody took it all that time
        ([], -2, False),
    ],
)
async def test_what_waits_to_be_delivered_stays_unless_nobody_has_its_channel(
    database: Database, state: str, channels: list[str], due_h: float, stays: bool
) -> None:
    rows = await Commit(database)("a", 1, 3 * HOUR, ["mail", "done"])
    await settle(database, rows)
    async with database.begin() as connection:
        change = update(deliveries).values(state="sent", due_at=None)
        await connection.execute(change)
        due_at = int(CLOCK.now_ms() + due_h * HOUR)
        change = change.where(deliveries.c.channel == "mail").values(state=state, due_at=due_at)
        await connection.execute(change)
    assert await retention(database, channels=channels).prune() == (0 if stays else 1)
    assert await closings(database) == ([("a", 1)] if stays else [])
    assert await size(database, deliveries) == (2 if stays else 0)


async def test_many_that_must_stay_do_not_keep_the_others(database: Database) -> None:
    """They are the oldest: each batch would find them first."""
    await old(database, "a", 2 * BATCH + 1, "mail")
    rows = await Commit(database)("b", 2 * BATCH + 1, HOUR + 60_000)
    await settle(database, rows)
    worker = retention(database, channels=["mail"])
    assert await worker.prune() == 2 * BATCH + 1
    assert await closings(database) == [("a", seq) for seq in range(1, 2 * BATCH + 2)]


async def test_batches_are_bounded_and_looked_up_in_indexes(database: Database) -> None:
    await old(database, "a", 2 * BATCH + 10, "mail")
    await finished(database, "sent")
    with statements(database) as given:
        assert await retention(database, channels=["mail"]).prune() == 2 * BATCH + 10
    sizes = [count for statement, count in given.sizes if statement.startswith("DELETE")]
    assert sizes == [BATCH, BATCH] * 2 + [10, 10]
    looks = [each for each in await given.plans("SELECT notifications.store_id") if each]
    for plan in looks:
        assert "notifications_settled" in plan
        assert "deliveries_pkey" in plan or "sqlite_autoindex_deliveries_1" in plan
        assert "SCAN" not in plan and "Sort" not in plan and "TEMP B-TREE" not in plan
    for plan in await given.plans("DELETE"):
        assert "SCAN" not in plan and "Seq Scan" not in plan


async def test_a_clock_that_is_years_ahead_does_not_empty_the_history(database: Database) -> None:
    history, now = History(database), int(CLOCK.now_ms())
    assert await history.beginning(now + 365 * DAY, HOUR) < now - HOUR + 60_000
    assert await history.beginning(now - 365 * DAY, HOUR) == now - 365 * DAY - HOUR


def test_pruning_works_a_fifth_of_the_time() -> None:
    assert pause_s(0.1) == pytest.approx(0.4)
    assert pause_s(0) > 0


# -- runs ------------------------------------------------------------------------------------


async def test_old_runs_go_but_for_the_newest_of_each_job(database: Database) -> None:
    now = int(CLOCK.now_ms())

    async def ran(
        job: str, age_h: float, state: str = "succeeded", origin: str = "schedule",
        began: int = 0,
    ) -> None:  # fmt: skip
        async with database.begin() as connection:
            await connection.execute(
                insert(job_runs).values(
                    job=job, tick=now - int(age_h * HOUR), attempt=1, state=state, owner="w",
                    origin=origin, started_at=began, lease_until=0,
                )
            )  # fmt: skip

    for age_h in (2.1, 3, 4, 5):
        await ran("retired", age_h)
        await ran("daily", age_h)
        await ran("by-hand", age_h, origin="manual")
    await ran("daily", 6, "running")
    await ran("daily", 7, "failed")
    await ran("daily", 8, origin="backfill", began=now)  # its like would be run again without it
    await ran("daily", 2.05, origin="manual")
    await ran("often", 0.5)
    await ran("often", 1.5)
    await ran("often", 2.5)
    worker = retention(database, runs_kept_s=2 * HOUR_S)
    assert await worker.prune() == 0

    async def ages(job: str) -> list[float]:
        return [(now - tick) / HOUR for tick, _, _ in await runs(database, job)]

    assert await ages("retired") == pytest.approx([2.1])
    assert await ages("daily") == pytest.approx([8, 6, 2.1, 2.05])
    assert await ages("by-hand") == pytest.approx([2.1])
    assert await ages("often") == pytest.approx([1.5, 0.5])


async def test_runs_are_pruned_in_bounded_batches(database: Database) -> None:
    async with database.begin() as connection:
        row = {"job": "each-second", "attempt": 1, "state": "succeeded", "owner": "w",
               "origin": "schedule", "started_at": 0, "lease_until": 0}  # fmt: skip
        await connection.execute(
            insert(job_runs), [{**row, "tick": tick} for tick in range(2 * BATCH)]
        )
    history = History(database)
    with statements(database) as given:
        assert await history.prune_runs(DAY) == BATCH
    assert await history.prune_runs(DAY) == BATCH - 1
    assert await history.prune_runs(DAY) == 0
    for plan in await given.plans("SELECT", "DELETE"):
        assert "SCAN" not in plan and "Seq Scan" not in plan


# -- clients ---------------------------------------------------------------------------------


async def test_a_client_from_before_the_history_is_told_and_goes_on(
    database: Database, redis_server: RedisServer
) -> None:
    await old(database, "a", 3)
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        await retention(database).prune()
        alone = Peer()  # of a store that has nothing left
        await server.hub.subscribe(alone.client, {"a": 1, EVERY: 1})
        server.relay.publish(await Commit(database)("a", 2))
        late, at_the_end = Peer(), Peer()
        await until(partial(_heard, alone, 4), 10)
        await server.hub.subscribe(late.client, {"a": 2, EVERY: 2})
        await server.hub.subscribe(at_the_end.client, {"a": 3, EVERY: 3})
        for peer in (late, at_the_end):
            await until(partial(_heard, peer, 4), 10)
        gone = {"seq": 3, "recovered": False}
        assert alone.heard.answers[0]["stores"] == {"a": gone, EVERY: gone}
        gone = {"seq": 5, "recovered": False}
        assert late.heard.answers[0]["stores"] == {"a": gone, EVERY: gone}
        there = {"seq": 5, "recovered": True}
        assert at_the_end.heard.answers[0]["stores"] == {"a": there, EVERY: there}
        for peer in (alone, late, at_the_end):
            ids = [each["id"] for each in peer.heard.events if "feedsequence" not in each]
            feed = [each["feedsequence"] for each in peer.heard.events if "feedsequence" in each]
            assert ids == ["a:4", "a:5"] and [int(each) for each in feed] == [4, 5]


async def _heard(peer: Peer, count: int) -> bool:
    return len(peer.heard.events) >= count


async def test_a_gap_behind_one_that_stayed_is_told_where_it_is(
    database: Database, redis_server: RedisServer
) -> None:
    """The oldest one waits to be delivered; those after it are gone."""
    await old(database, "a", 1, "mail")
    await old(database, "a", 3)
    await retention(database, channels=["mail"]).prune()
    await Commit(database)("a", 2)
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        peer = Peer()
        await server.hub.subscribe(peer.client, {"a": 0})
        await peer.has("a", [1, 5, 6])
        assert [each["stores"] for each in peer.heard.answers] == [
            {"a": {"seq": 6, "recovered": True}},
            {"a": {"seq": 4, "recovered": False}},
        ]


# -- several at once -------------------------------------------------------------------------


async def test_servers_that_prune_at_once_delete_each_once(
    database: Database, database_url: str
) -> None:
    for store in STORES:
        await old(database, store, BATCH, "mail")
    await finished(database, "sent")
    fresh = [await Commit(database)(store, 5) for store in STORES]
    await settle(database, [row for rows in fresh for row in rows])
    servers = [Database(database_url) for _ in range(3)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(retention(each).prune() for each in servers))
    for each in servers:
        await each.close()
    assert await closings(database) == [
        (store, seq) for store in STORES for seq in range(BATCH + 1, BATCH + 6)
    ]
    assert await size(database, deliveries) == 0


async def test_one_server_prunes_at_a_time_where_there_is_redis(
    database: Database, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 3)
    await old(database, "a", 2)
    async with Server(database, redis_server.url).running() as server:
        await server.up()
        one, other = (
            Retention(History(database), server.fanout, CLOCK, channels=[], kept_s=HOUR_S)
            for _ in range(2)
        )
        assert await one.prune() == 2
        await old(database, "a", 2)
        assert await other.prune() == 0  # the turn lasts for a period
        assert redis_server.cli("EXISTS", "solocron:notifications:*prune") == "1"
        redis_server.cli("FLUSHALL")
        assert await other.prune() == 2


async def test_pruning_beside_commits_marks_and_numbers_waits_for_nobody_for_ever(
    database: Database, database_url: str
) -> None:
    """Old ones are marked again, as a relay does that swept them twice, in another order than they
    are deleted in."""
    outbox, chance, done = Outbox(database), random.Random(3), asyncio.Event()
    rows: list[Notification] = []
    for store in STORES:
        for age in range(10):
            rows += await Commit(database)(store, 20, 2 * HOUR + age * 1000, ["mail"])
    await settle(database, rows)
    await finished(database, "sent")

    async def mark() -> None:
        while not done.is_set():
            chance.shuffle(rows)
            await outbox.mark_published(rows, 1)

    async def write(store: str) -> None:
        while not done.is_set():
            await settle(database, await Commit(database)(store, 5, channels=["mail"]))
            await asyncio.sleep(0)

    async def prune() -> None:
        other = Database(database_url)
        for _ in range(12):
            await _prune_some(other, 50)
        await other.close()
        done.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for work in (mark(), mark(), write("a"), write("b"), prune()):
            group.create_task(work)
    left = await closings(database)
    assert [seq for store, seq in left if store == "c"] == []
    for store in "ab":
        seqs = [seq for each, seq in left if each == store]
        assert seqs == list(range(201, 201 + len(seqs)))


async def _prune_some(database: Database, count: int) -> None:
    """As `History.prune`, with batches so small that there are many of them."""
    history = History(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solocron.storage.history.BATCH", count)
        await history.prune(int(CLOCK.now_ms()) - HOUR, [])


async def test_one_made_to_wait_again_while_it_is_pruned_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the deletion, somebody lets a dead letter be sent again."""
    await old(database, "a", 2, "mail", "sms")
    await finished(database, "dead")
    begin, first = database.begin, [1]

    async def retried() -> None:
        async with begin() as connection:
            one = (deliveries.c.seq == 2) & (deliveries.c.channel == "mail")
            values = {"state": "pending", "due_at": int(CLOCK.now_ms())}
            await connection.execute(update(deliveries).where(one).values(values))

    connect = database.connect

    class Connected:
        """The look; the other one's change is committed right after it."""

        def __init__(self) -> None:
            self._inner = connect()

        async def __aenter__(self) -> Any:
            return await self._inner.__aenter__()

        async def __aexit__(self, *error: Any) -> None:
            await self._inner.__aexit__(*error)
            if first:
                first.pop()
                await retried()

    history, before = History(database), int(CLOCK.now_ms()) - HOUR
    monkeypatch.setattr(database, "connect", Connected)
    await history.prune(before, ["mail"])
    monkeypatch.undo()
    assert await closings(database) == [("a", 2)]
    async with database.connect() as connection:
        rows = (await connection.execute(select(deliveries))).all()
    assert [(row.seq, row.channel, row.state) for row in rows] == [(2, "mail", "pending")]


# -- interrupted -----------------------------------------------------------------------------

KILLED = """
import asyncio, sys
from solocron.storage import history
from solocron.storage.engine import Database

delete = history._delete

async def delete_and_wait(*args):
    await delete(*args)
    print("deleted", flush=True)
    await asyncio.Event().wait()

history._delete = delete_and_wait
asyncio.run(history.History(Database(sys.argv[1])).prune(int(sys.argv[2]), []))
"""


async def test_killed_in_a_batch_it_leaves_nothing_half_done(
    database: Database, database_url: str
) -> None:
    await old(database, "a", 20, "mail")
    await finished(database, "sent")
    before = int(CLOCK.now_ms()) - HOUR
    process = await zygote.start(
        {"code": KILLED}, [database_url, str(before)], stdout=zygote.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(retention_module.__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"deleted\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert (await size(database, notifications), await size(database, deliveries)) == (20, 20)
    await settle(database, await Commit(database)("a"))  # the feed is free again
    assert (await History(database).prune(before, [])).found == 20
    assert await closings(database) == [("a", 21)]


async def test_a_service_prunes_and_stops_in_the_middle_of_it(
    environment: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    async with with_stores(sqlite_url, *STORES) as database:
        for _ in range(3):
            await old(database, "a", BATCH)
        environment.setenv("SOLOCRON_HISTORY", "3600")
        cron = Solocron.from_env()
        cron.parts.retention._every_s = 0.2

        async def begun() -> bool:
            return await size(database, notifications) < 3 * BATCH

        async with cron:
            await until(begun)
        left = await size(database, notifications)
        assert left % BATCH == 0
        environment.setenv("SOLOCRON_HISTORY", "7201")
        kept = await old(database, "b", 1)
        later = Solocron.from_env()
        assert await later.parts.retention.prune() <= left
        assert ("b", kept[0].seq) in await closings(database)
        await later.parts.fanout.close()
        await later.parts.database.close()
