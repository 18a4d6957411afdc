"""Notifications of a host's own: in its transaction, once, in order, and soon after the commit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from mailing import all_are, channels, running
from services import MailServer
from shops import own_stores, put_all
from solocron.cron.run import Run
from solocron.errors import InvalidInput
from solocron.notifications.event import MAX_DATA
from solocron.service import Solocron
from solocron.settings import load
from solocron.storage.engine import Database, parse_url
from solocron.stores.model import Store
from solocron.stores.repository import UnknownStore

HOUR = 3_600_000


@pytest.fixture
async def cron(environment: pytest.MonkeyPatch, database_url: str) -> AsyncIterator[Solocron]:
    environment.setenv("DATABASE_URL", database_url)
    cron = Solocron(load())
    await cron.parts.database.migrate()
    await put_all(cron.parts.database, [Store(each, each, "UTC", "24/7") for each in "ab"], 0)
    yield cron
    await cron.stop()
    await cron.parts.database.close()


async def told(cron: Solocron, store: str = "a") -> list[tuple[int, str, Any]]:
    _, rows = await cron.parts.hub._outbox.since({store: 0}, 100)
    return [(each.seq, each.type, each.data) for each in rows]


async def published(cron: Solocron) -> None:
    """Wait until all is published."""
    async with asyncio.timeout(10):
        while await cron.parts.hub._outbox.unpublished(2**62, 1):
            await asyncio.sleep(0.005)


async def test_with_no_connection_it_is_committed_at_once(cron: Solocron) -> None:
    assert [await cron.notify("a", "shop.renamed", {"n": n}) for n in range(3)] == [1, 2, 3]
    assert await cron.notify("b", "order.placed", {}) == 1
    assert await told(cron) == [(n + 1, "shop.renamed", {"n": n}) for n in range(3)]


async def test_in_a_hosts_transaction_it_is_there_with_that_or_never(
    cron: Solocron, database_url: str
) -> None:
    engine = create_async_engine(parse_url(database_url))
    loop = asyncio.get_running_loop()
    async with cron:
        with pytest.raises(RuntimeError):
            async with engine.begin() as connection:
                await connection.execute(text("UPDATE stores SET name = 'never'"))
                assert await cron.notify("a", "shop.renamed", {"to": "never"}, connection) == 1
                raise RuntimeError
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE stores SET name = 'New' WHERE id = 'a'"))
            assert await cron.notify("a", "shop.renamed", {"to": "New"}, connection) == 1
            assert await cron.notify("a", "shop.moved", {}, connection) == 2
            assert await told(cron) == []
        committed = loop.time()
        await published(cron)
        assert loop.time() - committed < 1.9  # the sweep waits for two seconds
    assert await told(cron) == [(1, "shop.renamed", {"to": "New"}), (2, "shop.moved", {})]
    await engine.dispose()


async def test_a_store_made_in_that_transaction_can_be_told_of(cron: Solocron) -> None:
    async with cron.parts.database.begin() as connection:
        await connection.execute(
            text("INSERT INTO stores (id, name, timezone, hours, updated_at) "
                 "VALUES ('new', 'New', 'UTC', '24/7', 0)")
        )  # fmt: skip
        assert await cron.notify("new", "shop.created", {}, connection) == 1
    for nowhere in ("nowhere", "no\0where", "no\udcffwhere"):
        with pytest.raises(UnknownStore, match=re.escape(repr(nowhere))):
            await cron.notify(nowhere, "shop.created", {})


async def test_a_run_tells_in_its_own_transaction(cron: Solocron) -> None:
    @cron.job("0 0 1 1 *", name="rename")
    async def rename(run: Run) -> None:
        async with run.transaction() as connection:
            await run.notify(connection, "a", "shop.renamed", {"attempt": run.attempt})
            if run.attempt == 1:
                raise RuntimeError("once more")

    async with cron:
        outcome = await cron.run_job("rename")
        assert (outcome.state, outcome.attempt) == ("succeeded", 2)
        await published(cron)
    assert await told(cron) == [(1, "shop.renamed", {"attempt": 2})]


async def test_many_at_once_leave_no_gap_and_come_in_order(cron: Solocron) -> None:
    async def tell(n: int) -> None:
        async with cron.parts.database.begin() as connection:
            await cron.notify("a", "n", {"n": n}, connection)

    async with cron:
        await asyncio.gather(*(tell(n) for n in range(20)))
        await published(cron)
    assert [seq for seq, _, _ in await told(cron)] == list(range(1, 21))


@pytest.mark.parametrize(
    ("type_", "data", "why"),
    [
        ("store.closed", {}, "solocron's own"),
        ("store.new", {}, "solocron's own"),
        ("", {}, "use 1 to 64"),
        ("a b", {}, "use 1 to 64"),
        ("a" * 65, {}, "use 1 to 64"),
        ("ok", {"x": "x" * MAX_DATA}, "bytes as JSON"),
        ("ok", {"x": float("nan")}, "no JSON"),
        ("ok", {"x": object()}, "no JSON"),
        ("ok", {"x": "\ud800"}, "no JSON"),
        ("ok", [1], "give a mapping"),
    ],
)
async def test_what_cannot_be_sent_is_refused(
    cron: Solocron, type_: str, data: Any, why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        await cron.notify("a", type_, data)
    assert await told(cron) == []


async def test_email_says_what_it_is_in_general_words(database: Database, mail: MailServer) -> None:
    urls = [mail.url()]
    await put_all(database, [Store("a", "Mitte", "Europe/Berlin", "24/7")], 0)
    stores = own_stores(database, channels(database, urls).ids)
    async with database.begin() as connection:
        await stores.notify(connection, "a", "order.placed", {"total": 5}, 3 * HOUR)
    async with running(channels(database, urls)):
        await all_are(database, sent=1)
    assert mail.taken[0]["Subject"] == "Mitte: order.placed"
    assert "order.placed of Mitte, 1970-01-01 04:00 CET." in mail.taken[0].get_content()
