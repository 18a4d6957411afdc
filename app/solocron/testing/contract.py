"""What every StoreRepository must hold to, as tests: a host runs them on its own.

Each test is a plain function that runs an event loop of its own, so no plugin of pytest is needed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

try:
    import pytest
except ImportError:
    raise ImportError("solocron.testing needs pytest: pip install pytest") from None

from solocron.errors import StorageUnavailable
from solocron.storage.engine import Database
from solocron.storage.outbox import Outbox
from solocron.stores.hours import HoursKey
from solocron.stores.model import Store
from solocron.stores.repository import (
    StoreName,
    StoreRepository,
    StoresReadOnly,
    UnknownStore,
)
from solocron.stores.service import StoreService

_NOW = 1_777_010_400_000  # Friday 2026-04-24 06:00 UTC
_WITHIN_S = 60.0
_ROUNDS = 12


@dataclass(frozen=True)
class StoresUnderTest:
    """The repository, the migrated database of solocron that it works with, and how a test puts
    stores where it finds them. `put` is given stores with the fields a host's table has columns
    for: one that has none for a field leaves it out. `ids` are ten ids that stores can have, in
    their order; `fields` are those that are kept."""

    repository: StoreRepository
    database: Database
    put: Callable[[Sequence[Store]], Awaitable[None]]
    ids: Sequence[str] = tuple(str(number) for number in range(11, 21))
    fields: Sequence[str] = ("name", "hours", "is_open", "timezone", "country", "contact")


Opened = Callable[[], AbstractAsyncContextManager[StoresUnderTest]]


class StoreRepositoryContract:
    """Inherit it, in a class whose name begins with `Test`, and give the fixture `stores`: a
    function that opens, as an async context manager, StoresUnderTest without a store."""

    @pytest.fixture
    def stores(self) -> Opened:
        """To be overridden."""
        raise NotImplementedError("override the fixture `stores` of StoreRepositoryContract")

    # -- reading ---------------------------------------------------------------------------

    def test_it_finds_what_is_there_by_id_and_nothing_else(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            a, b, missing = under.ids[:3]
            there = [_store(under, a), _store(under, b, hours="off", is_open=True)]
            await under.put(there)
            await under.repository.check()
            found = await under.repository.get_many([a, b, missing, "no-such-store", "*"])
            assert {key: _plain(under, each) for key, each in found.items()} == {
                each.id: _plain(under, each) for each in there
            }
            assert all(each.notification_seq == 0 for each in found.values())
            assert dict(await under.repository.get_many([])) == {}

        _run(stores, check)

    def test_its_pages_follow_one_another(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            page = under.repository.page
            await under.put(
                [_store(under, each, is_open=n % 2 == 0) for n, each in enumerate(under.ids)]
            )
            found: list[str] = []
            while some := await page(found[-1] if found else None, 3):
                assert len(some) <= 3, "a page has more stores than `limit`"
                found += [each.id for each in some]
                assert len(found) <= len(under.ids), "pages repeat stores"
            assert found == list(under.ids), "pages leave stores out, repeat them, or mix them up"
            opened = await page(is_open=True)
            assert [each.id for each in opened] == list(under.ids[::2])
            assert all(each.is_open for each in opened)
            some_ids = [under.ids[4], under.ids[1], "no-such-store"]
            assert [each.id for each in await page(ids=some_ids)] == [under.ids[1], under.ids[4]]
            assert list(await page(ids=[])) == []

        _run(stores, check)

    def test_it_counts_hours_by_key_of_open_and_of_closed_stores(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            made = [
                _store(under, each, hours="off" if n < 3 else "24/7", is_open=n != 9)
                for n, each in enumerate(under.ids)
            ]
            await under.put(made)
            for is_open in (True, False):
                expected = Counter(_key(under, each) for each in made if each.is_open == is_open)
                assert dict(await under.repository.hours_keys(is_open)) == dict(expected)

        _run(stores, check)

    # -- closing ---------------------------------------------------------------------------

    def test_it_closes_open_stores_with_those_hours_and_no_others(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            due, closed, other = under.ids[:3]
            made = [
                _store(under, due, is_open=True, hours="off"),
                _store(under, closed, hours="off"),
                _store(under, other, is_open=True),
            ]
            await under.put(made)
            keys = [_key(under, made[0])]
            assert await _close(under, keys) == [due], "closed are not just the open ones due"
            assert await _close(under, keys) == [], "done again, it closed something again"
            assert await _open_ids(under) == [other]

        _run(stores, check)

    def test_it_closes_no_more_than_the_limit_at_a_time(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            made = [_store(under, each, is_open=True) for each in under.ids]
            await under.put(made)
            found, sizes = list[str](), list[int]()
            while not sizes or sizes[-1] >= 3:
                some = await _close(under, [_key(under, made[0])], limit=3)
                sizes.append(len(some))
                found += some
                assert len(some) <= 3, "more stores than `limit` were closed in one transaction"
                assert len(found) <= len(made), "stores were closed again"
            assert sorted(found) == sorted(under.ids), "stores were left out, or closed twice"

        _run(stores, check)

    def test_it_closes_stores_of_several_keys_at_once(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            hours = ["off", "24/7 off", "24/7"]
            made = [
                _store(under, each, is_open=True, hours=hours[n % 3])
                for n, each in enumerate(under.ids)
            ]
            await under.put(made)
            keys = [_key(under, made[0]), _key(under, made[1])]
            due = [each.id for each in made if each.hours != "24/7"]
            assert sorted(await _close(under, keys)) == sorted(due)

        _run(stores, check)

    def test_what_is_rolled_back_changed_nothing(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            store = _store(under, under.ids[0], is_open=True)
            await under.put([store])
            for change in (
                lambda connection: under.repository.close_due(
                    connection, [_key(under, store)], now_ms=_NOW, limit=10
                ),
                lambda connection: under.repository.set_open(connection, store.id, False, _NOW),
            ):
                with pytest.raises(_RollBack):
                    async with under.database.begin() as connection:
                        assert await change(connection)
                        seen = await under.repository.get_many([store.id], connection)
                        assert not seen[store.id].is_open, "the transaction does not see its change"
                        raise _RollBack
                assert await _open_ids(under) == [store.id], (
                    "it was changed beside the connection that was given"
                )

        _run(stores, check)

    def test_of_many_that_close_at_once_each_store_is_closed_by_one(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            made = [_store(under, each, is_open=True) for each in under.ids]
            await under.put(made)
            keys = [_key(under, made[0])]
            found = await asyncio.gather(*(_close(under, keys, limit=4) for _ in range(6)))
            found.append(await _close(under, keys, limit=10))
            assert sorted(each for some in found for each in some) == sorted(under.ids)

        _run(stores, check)

    # -- reminding -------------------------------------------------------------------------

    def test_it_lists_closed_stores_with_those_hours_in_order(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            made = [
                _store(under, each, is_open=n == 4, hours="off" if n == 5 else "24/7")
                for n, each in enumerate(under.ids)
            ]
            await under.put(made)
            due = [each.id for n, each in enumerate(made) if n not in (4, 5)]
            found, last = list[str](), None
            while True:
                async with under.database.begin() as connection:
                    some = await under.repository.closed(
                        connection, [_key(under, made[0])], after=last, limit=3
                    )
                assert len(some) <= 3, "more stores than `limit` are listed"
                found += [each.id for each in some]
                assert len(found) <= len(due), "stores are listed that are not due, or again"
                if len(some) < 3:
                    break
                last = some[-1].id
            assert found == due
            assert {each.name for each in some} <= {each.name for each in made}

        _run(stores, check)

    def test_each_tick_reminds_each_store_once(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            made = [_store(under, each) for each in under.ids]
            await under.put(made)
            service = StoreService(under.repository, under.database)
            for tick, times in ((_NOW, 3), (_NOW + 1, 1)):
                told = [await _remind(under, service, made[0], tick) for _ in range(times)]
                assert [len(some) for some in told] == [len(made)] + [0] * (times - 1)
            assert await _seqs(under) == {each: [1, 2] for each in under.ids}

        _run(stores, check)

    # -- one store -------------------------------------------------------------------------

    def test_one_store_is_opened_and_closed_once(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            store = _store(under, under.ids[0])
            await under.put([store])
            for is_open in (True, False):
                assert await _set_open(under, store.id, is_open) == StoreName(store.id, store.name)
                assert await _set_open(under, store.id, is_open) is None
                assert await _open_ids(under) == [store.id] * is_open
            for unknown in (under.ids[1], "no-such-store"):
                assert await _set_open(under, unknown, True) is None

        _run(stores, check)

    def test_it_creates_and_describes_stores_or_says_that_it_does_not(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            store = _store(under, under.ids[0])
            try:
                assert await under.repository.put(store, _NOW)
            except StoresReadOnly:
                assert dict(await under.repository.get_many([store.id])) == {}
                return
            await _set_open(under, store.id, True)
            renamed = replace(store, name="Renamed", is_open=False)
            assert not await under.repository.put(renamed, _NOW)
            found = (await under.repository.get_many([store.id]))[store.id]
            assert (found.name, found.is_open) == ("Renamed", True), "put opens and closes nothing"

        _run(stores, check)

    # -- all of it at once -----------------------------------------------------------------

    def test_what_is_told_of_a_store_is_what_became_of_it(self, stores: Opened) -> None:
        async def check(under: StoresUnderTest) -> None:
            made = [_store(under, each, is_open=True) for each in under.ids]
            await under.put(made)
            service, keys = StoreService(under.repository, under.database), [_key(under, made[0])]

            async def owner(offset: int) -> None:
                for n in range(_ROUNDS):
                    store_id = under.ids[(n * 3 + offset) % len(made)]
                    await service.set_open(store_id, (n + offset) % 3 > 0, _NOW)

            async def job() -> None:
                for n in range(_ROUNDS):
                    async with under.database.begin() as connection:
                        await service.close_due(
                            connection, keys, tick=_NOW + n, now_ms=_NOW, limit=4
                        )

            await asyncio.gather(owner(0), owner(1), job(), job())
            opened = await _open_ids(under)
            for store_id, types in (await _types(under)).items():
                in_turn = (["store.closed", "store.opened"] * len(types))[: len(types)]
                assert types == in_turn, f"store {store_id} was told of as {types}"
                assert (store_id in opened) == (types[-1] == "store.opened")
            with pytest.raises(UnknownStore):
                await service.set_open("no-such-store", True, _NOW)

        _run(stores, check)


class _RollBack(Exception):
    pass


def _run(stores: Opened, check: Callable[[StoresUnderTest], Awaitable[None]]) -> None:
    async def opened() -> None:
        async with asyncio.timeout(_WITHIN_S), stores() as under:
            try:
                await check(under)
            except StorageUnavailable as error:
                raise AssertionError(f"the database gave up: {error}") from error

    asyncio.run(opened())


def _store(
    under: StoresUnderTest, store_id: str, *, hours: str = "24/7", is_open: bool = False
) -> Store:
    given: dict[str, Any] = {
        "timezone": "Europe/Berlin", "country": "DE", "contact": "shop@example.com",
    }  # fmt: skip
    kept = {name: value for name, value in given.items() if name in under.fields}
    return Store(
        id=store_id, name=f"Store {store_id}", hours=hours, is_open=is_open,
        **{"timezone": "Europe/Berlin", **kept},
    )  # fmt: skip


def _plain(under: StoresUnderTest, store: Store) -> dict[str, Any]:
    return {name: getattr(store, name) for name in ("id", *under.fields)}


def _key(under: StoresUnderTest, store: Store) -> HoursKey:
    """Its key; of a host whose stores share a zone, Europe/Berlin is that."""
    return HoursKey(store.hours, store.timezone, store.country)


async def _close(under: StoresUnderTest, keys: Sequence[HoursKey], limit: int = 1000) -> list[str]:
    async with under.database.begin() as connection:
        some = await under.repository.close_due(connection, keys, now_ms=_NOW, limit=limit)
    return [each.id for each in some]


async def _set_open(under: StoresUnderTest, store_id: str, is_open: bool) -> StoreName | None:
    async with under.database.begin() as connection:
        return await under.repository.set_open(connection, store_id, is_open, _NOW)


async def _open_ids(under: StoresUnderTest) -> list[str]:
    return [each.id for each in await under.repository.page(is_open=True)]


async def _remind(
    under: StoresUnderTest, service: StoreService, store: Store, tick: int
) -> list[str]:
    found: list[str] = []
    last: str | None = None
    for _ in under.ids:
        async with under.database.begin() as connection:
            rows, last = await service.remind_due(
                connection, [_key(under, store)], tick=tick, now_ms=tick, limit=4, after=last
            )
        found += [each.store_id for each in rows]
        if last is None:
            return found
    raise AssertionError("what is past `after` never ends")


async def _seqs(under: StoresUnderTest) -> dict[str, list[int]]:
    found = await _told(under)
    return {store_id: [seq for seq, _ in rows] for store_id, rows in found.items()}


async def _types(under: StoresUnderTest) -> dict[str, list[str]]:
    """The types of each store's notifications, in order; their numbers have no gap."""
    found = await _told(under)
    for store_id, rows in found.items():
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1)), store_id
    return {store_id: [type_ for _, type_ in rows] for store_id, rows in found.items()}


async def _told(under: StoresUnderTest) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    _, rows = await Outbox(under.database).since(dict.fromkeys(under.ids, 0), 1000)
    for each in rows:
        found.setdefault(each.store_id, []).append((each.seq, each.type))
    return found
