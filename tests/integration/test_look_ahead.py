"""Looking ahead: what is due is found in one look, and closed only if it still is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate
from test_store_contract import mapped, opener, own, with_uuids
from test_store_jobs import At, Published, attempt

from solocron.storage.deliveries import Deliveries
from solocron.storage.outbox import Outbox
from solocron.stores import HoursKey, Store, StoreTable, auto_close
from solocron.stores.auto_close import AutoClose
from solocron.stores.repository import LooksAhead
from solocron.stores.service import StoreService
from solocron.stores.table import TableStores
from solocron.testing import StoresUnderTest
from solocron.testing.contract import Opened

ZONE = "Europe/Berlin"
SHUT, ALSO_SHUT, OPEN = "Sa 10:00-18:00", "Su 10:00-18:00", "Mo-Fr 05:00-18:00"
KEYS = [HoursKey(hours, ZONE, "") for hours in (SHUT, ALSO_SHUT)]


@pytest.fixture(params=[own, mapped])
def stores(request: pytest.FixtureRequest, database_url: str) -> Opened:
    return opener(request.param, database_url)


def store(store_id: str, hours: str = SHUT, *, is_open: bool = True) -> Store:
    return Store(store_id, f"Store {store_id}", ZONE, hours, "", is_open)


async def looked(
    under: StoresUnderTest, *, after: str | None = None, limit: int = 100
) -> dict[str, HoursKey]:
    assert isinstance(under.repository, LooksAhead)
    return dict(await under.repository.look_ahead(KEYS, after=after, limit=limit))


async def closed(under: StoresUnderTest, due: dict[str, HoursKey]) -> list[str]:
    assert isinstance(under.repository, LooksAhead)
    async with under.database.begin() as connection:
        closing = await under.repository.closing(connection, due, now_ms=5)
        return sorted(str(each.id) for each in await connection.execute(closing))


async def check_looks(under: StoresUnderTest) -> None:
    a, b, c, d, e = under.ids[:5]
    await under.put([
        store(e), store(b, ALSO_SHUT), store(a), store(c, OPEN), store(d, is_open=False),
    ])  # fmt: skip
    first, second = KEYS
    assert list((await looked(under)).items()) == [(a, first), (b, second), (e, first)]
    assert list(await looked(under, limit=2)) == [a, b]
    assert list(await looked(under, after=a, limit=2)) == [b, e]
    assert await looked(under, after=e) == {}


async def test_open_stores_with_those_hours_are_found_in_order(stores: Opened) -> None:
    async with stores() as under:
        await check_looks(under)


async def test_a_host_s_schema_with_uuids_is_looked_through(postgres_url: str) -> None:
    async with opener(with_uuids, postgres_url)() as under:
        await check_looks(under)
        due = await looked(under)
        assert await closed(under, due) == list(due)


async def test_without_a_country_is_with_an_empty_one(postgres_url: str) -> None:
    async with opener(with_uuids, postgres_url)() as under:
        await under.put([replace(store(under.ids[0]), country=None)])  # type: ignore[arg-type]
        due = await looked(under)
        assert due == {under.ids[0]: KEYS[0]}
        assert await closed(under, due) == list(due)


async def test_what_changed_since_the_look_is_left_alone(stores: Opened) -> None:
    async with stores() as under:
        a, b, c = under.ids[:3]
        await under.put([store(each) for each in (a, b, c)])
        due = await looked(under)
        async with under.database.begin() as connection:
            await under.repository.set_open(connection, b, False, 1)
        due[c] = KEYS[1]  # it had other hours when it was looked for
        assert await closed(under, due) == [a]
        assert await closed(under, due) == []
        assert list(await looked(under)) == [c]


async def test_all_is_closed_in_order_however_little_is_seen_at_a_time(
    stores: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_close, "_AHEAD", 3)
    monkeypatch.setattr(auto_close, "_KEYS_AHEAD", 1)
    async with stores() as under, attempt(under.database) as run:
        ids = under.ids[:9]
        hours = [SHUT] * 6 + [ALSO_SHUT] * 3
        await under.put([store(each, hours[n]) for n, each in enumerate(ids)])
        published = Published()
        job = AutoClose(StoreService(under.repository, under.database), At(), published, batch=2)
        assert await job(run) == {"closed": 9}
        assert published.batches == [2, 1, 2, 1, 2, 1]
        told, batches = iter(each.store_id for each in published), iter(published.batches)
        assert [each for size in batches for each in sorted(islice(told, size))] == list(ids)


async def test_what_is_told_has_any_name_and_goes_to_each_channel(stores: Opened) -> None:
    names = ['"\\ \n\x01', "Käse & \u2028 <b>", ""]
    async with stores() as under, attempt(under.database) as run:
        ids = under.ids[:3]
        await under.put([
            replace(store(each), name=name) for each, name in zip(ids, names, strict=True)
        ])  # fmt: skip
        published = Published()
        service = StoreService(under.repository, under.database, ["mail", "sms"])
        assert await AutoClose(service, At(), published)(run) == {"closed": 3}
        assert {each.store_id: each.data["name"] for each in published} == dict(
            zip(ids, names, strict=True)
        )
        read = await Outbox(under.database).unpublished(2**62, 10)
        assert sorted(read, key=lambda row: row.store_id) == sorted(
            published, key=lambda row: row.store_id
        )
        counts = await Deliveries(under.database).counts()
        assert {channel: count.pending for channel, count in counts.items()} == {
            "mail": 3, "sms": 3,
        }  # fmt: skip


class Stuck(TableStores):
    """Where nothing can be closed, as by a rule of the host's."""

    async def closing(
        self, connection: AsyncConnection, due: Mapping[str, HoursKey], *, now_ms: int
    ) -> ReturningUpdate[Any]:
        nobody = {"no-such-store": KEYS[0]}
        return await super().closing(connection, nobody, now_ms=now_ms)


async def test_it_ends_though_nothing_can_be_closed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_close, "_AHEAD", 2)
    async with opener(own, database_url)() as under, attempt(under.database) as run:
        await under.put([store(each) for each in under.ids[:6]])
        stuck = StoreService(Stuck(StoreTable(), under.database), under.database)
        async with asyncio.timeout(20):
            assert await AutoClose(stuck, At(), Published())(run) == {"closed": 0}
