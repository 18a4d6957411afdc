"""The client against a real service: tokens that end, slowness, silence, a drain, and refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import aiohttp
import pytest
from sqlalchemy import insert
from test_socket import nobody_left
from test_socket_tokens import ends_in, of, turn
from test_web import STORE, Api, put, serving, token

from proxy import Proxy
from solocron.client import Client, Event, Gap, Refused, StoresRefused
from solocron.errors import StorageUnavailable
from solocron.notifications.event import cloud_event
from solocron.storage import outbox as rows
from solocron.storage.outbox import Notification
from solocron.storage.tables import store_states
from solocron.web.connections import Connections
from solocron.web.session import Session

QUICK = (0.02, 0.1)


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with with_shops() as api:
        yield api
        await nobody_left(api)


@asynccontextmanager
async def with_shops() -> AsyncIterator[Api]:
    async with serving() as api:
        await put(api, "1", "2", "3")
        yield api


def client(port: int, stores: Any, **options: Any) -> Client:
    defaults: dict[str, Any] = {"token": token(), "retry_s": QUICK}
    return Client(f"ws://127.0.0.1:{port}/ws", stores, **{**defaults, **options})


async def take(events: Client, count: int) -> list[tuple[str, int]]:
    """(store, seq) of the next ones."""
    async with asyncio.timeout(15):
        return [(each.store_id, each.seq) for each in [await anext(events) for _ in range(count)]]


async def nothing_more(events: Client, for_s: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(for_s):
            await anext(events)


async def watched(api: Api, *stores: str) -> None:
    """Wait until the service has one client, which watches these."""
    hub = api.cron.parts.hub
    async with asyncio.timeout(10):
        while [*map(set, hub._subscriptions.values())] != [set(stores)]:
            await asyncio.sleep(0.005)


def its_socket(api: Api) -> Session:
    (socket,) = api.cron.parts.connections._open
    assert isinstance(socket, Session)
    return socket


async def ended(socket: Session, code: int) -> None:
    """Wait until the service has ended this connection, with that code."""
    async with asyncio.timeout(10):
        while socket._ending is None:
            await asyncio.sleep(0.01)
    assert socket._ending[0] == code


# -- positions -------------------------------------------------------------------------------


async def test_events_have_what_happened_to_which_store(api: Api) -> None:
    await turn(api, "2")
    async with client(api.port, {"1": 0, "2": 0}) as events:
        event = await anext(events)
        assert (event.store_id, event.seq, event.type) == ("2", 1, "store.opened")
        assert event.data["name"] == STORE["name"] and event.feed is None
        assert abs(event.time.timestamp() * 1000 - api.cron.parts.clock.now_ms()) < 60_000
        assert events.positions == {"1": 0, "2": 1} and events.is_connected


async def test_positions_given_back_resume_after_a_restart(api: Api) -> None:
    async with client(api.port, ["1", "2"]) as events:
        started = asyncio.create_task(take(events, 1))
        await watched(api, "1", "2")
        await turn(api, "1", "2", "3")
        await started
        kept = events.positions
    await turn(api, "3")
    assert kept in ({"1": 1, "2": 0}, {"1": 0, "2": 1})
    async with client(api.port, kept) as events:
        rest = await take(events, 1)
        assert {*rest, *started.result()} == {("1", 1), ("2", 1)}
        await nothing_more(events)


async def test_all_stores_are_resumed_by_their_place_in_the_feed(api: Api) -> None:
    await turn(api, "1", "2")
    async with client(api.port, {"*": 0}) as events:
        first = await take(events, 1)
        kept = events.positions
    assert kept == {"*": 1}
    await turn(api, "3")
    async with client(api.port, kept) as events:
        got = first + await take(events, 2)
        assert sorted(got) == [("1", 1), ("2", 1), ("3", 1)]
        its_socket(api).drop()
        await put(api, "4")
        await turn(api, "4")
        assert await take(events, 1) == [("4", 1)]
        assert events.positions == {"*": 4}


async def test_a_repeat_on_the_wire_is_taken_once(api: Api) -> None:
    """The service is made to forget how far its client has come."""
    async with client(api.port, {"1": 0}) as events:
        await turn(api, "1")
        assert await take(events, 1) == [("1", 1)]
        hub = api.cron.parts.hub
        clients = hub._topics["1"].clients
        for each in clients:
            clients[each] = 0
        event = cloud_event(Notification("1", 1, "store.opened", {}, 0))
        hub.deliver("1", 1, event)
        assert list(clients.values()) == [1]  # it was sent again
        await nothing_more(events)
        await api.call("POST", "/api/v1/stores/1/close", auth=token())
        assert await take(events, 1) == [("1", 2)]


async def test_a_last_seq_from_before_a_restore_is_a_gap(api: Api) -> None:
    gaps: list[Gap] = []
    await turn(api, "1")
    async with client(api.port, {"1": 70}, on_gap=gaps.append) as events:
        started = asyncio.create_task(take(events, 1))
        await watched(api, "1")
        await api.call("POST", "/api/v1/stores/1/close", auth=token())
        assert await started == [("1", 2)]
    assert gaps == [Gap("1", 70, 1)]


async def test_stores_come_and_go_over_the_open_socket(api: Api) -> None:
    async with client(api.port, ["1"]) as events:
        getting = asyncio.create_task(take(events, 2))
        await watched(api, "1")
        socket = its_socket(api)
        await events.subscribe({"2": 0})
        await watched(api, "1", "2")
        await events.unsubscribe("1")
        await watched(api, "2")
        await turn(api, "1", "2")
        await events.subscribe({"3": None})
        await watched(api, "2", "3")
        await turn(api, "3")
        assert await getting == [("2", 1), ("3", 1)]
        assert its_socket(api) is socket
        assert events.positions == {"2": 1, "3": 1}


# -- tokens ----------------------------------------------------------------------------------


async def test_a_token_is_renewed_over_the_open_socket_before_its_end(api: Api) -> None:
    made: list[str] = []

    async def fresh() -> str:
        made.append(of("1", exp=ends_in(3), jti=str(len(made))))
        return made[-1]

    async with client(api.port, {"1": 0}, token=fresh) as events:
        getting = asyncio.create_task(take(events, 1))
        await watched(api, "1")
        socket = its_socket(api)
        async with asyncio.timeout(15):
            while len(made) < 3:  # past the end of the first one
                await asyncio.sleep(0.05)
        await turn(api, "1")
        assert await getting == [("1", 1)]
        assert its_socket(api) is socket


async def test_a_token_that_expired_while_nobody_iterated_is_replaced(api: Api) -> None:
    tokens = [of("1"), of("1", exp=ends_in(1.0))]
    async with client(
        api.port, {"1": 0}, token=lambda: tokens.pop() if len(tokens) > 1 else tokens[0]
    ) as events:
        await turn(api, "1")
        assert await take(events, 1) == [("1", 1)]
        await ended(its_socket(api), 4401)
        await api.call("POST", "/api/v1/stores/1/close", auth=token())
        assert await take(events, 1) == [("1", 2)]


async def test_a_token_source_that_fails_is_asked_again(api: Api) -> None:
    answers: list[Any] = [OSError("away"), TimeoutError(), of("1")]

    def fresh() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    await turn(api, "1")
    async with client(api.port, {"1": 0}, token=fresh) as events:
        assert await take(events, 1) == [("1", 1)]


@pytest.mark.parametrize("as_function", [False, True])
async def test_a_token_that_is_refused_ends_it(api: Api, as_function: bool) -> None:
    bad = of("1", exp=1)
    async with client(api.port, ["1"], token=(lambda: bad) if as_function else bad) as events:
        async with asyncio.timeout(10):
            with pytest.raises(Refused, match="token") as caught:
                await anext(events)
        assert caught.value.code == 4401 and bad not in str(caught.value)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_two_tokens_that_are_refused_end_it(api: Api) -> None:
    made = iter([of("1", exp=1), of("1", exp=2)])
    async with client(api.port, ["1"], token=lambda: next(made)) as events, asyncio.timeout(10):
        with pytest.raises(Refused, match="expired"):
            await anext(events)
    assert list(made) == []


async def test_no_token_and_no_right_end_it(api: Api) -> None:
    for given, code in ((None, 4401), (token(scope="stores:write"), 4403)):
        async with client(api.port, ["1"], token=given) as events, asyncio.timeout(10):
            with pytest.raises(Refused) as caught:
                await anext(events)
        assert caught.value.code == code


async def test_stores_a_renewed_token_is_not_for_are_told(api: Api) -> None:
    made = iter([of("1", "2", exp=ends_in(2)), of("2")])
    async with client(api.port, {"1": 0, "2": 0}, token=lambda: next(made)) as events:
        async with asyncio.timeout(10):
            with pytest.raises(StoresRefused) as caught:
                await anext(events)
        assert (caught.value.code, caught.value.stores) == ("forbidden", ("1",))
        await turn(api, "1", "2")
        assert await take(events, 1) == [("2", 1)]


# -- refusals --------------------------------------------------------------------------------


async def test_stores_that_are_not_there_are_told_and_the_others_go_on(api: Api) -> None:
    async with client(api.port, {"1": 0, "9": 0, "3": 0}, token=of("1", "9")) as events:
        refused = []
        for _ in range(2):
            with pytest.raises(StoresRefused) as caught:
                await anext(events)
            refused.append((caught.value.code, caught.value.stores))
        assert sorted(refused) == [("forbidden", ("3",)), ("unknown-store", ("9",))]
        await turn(api, "1")
        assert await take(events, 1) == [("1", 1)]


async def test_an_address_that_is_no_solocron_ends_it(api: Api) -> None:
    for path, code in (("/nowhere", 404), ("/healthz", 200)):
        url = f"http://127.0.0.1:{api.port}{path}"
        async with Client(url, ["1"]) as events, asyncio.timeout(10):
            with pytest.raises(Refused, match=path) as caught:
                await anext(events)
        assert caught.value.code == code


async def test_a_database_that_is_away_is_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, tries = api.cron.parts.hub._outbox, []
    heads = outbox.heads

    async def away(store_ids: Any) -> dict[str, int]:
        tries.append(store_ids)
        if len(tries) == 1:
            raise StorageUnavailable("away")
        return await heads(store_ids)

    await turn(api, "1")
    monkeypatch.setattr(outbox, "heads", away)
    async with client(api.port, {"1": 0}) as events:
        assert await take(events, 1) == [("1", 1)]
        assert len(tries) == 2 and api.cron.parts.connections.open == 1


# -- connections that end --------------------------------------------------------------------


async def test_a_slow_user_is_given_up_and_resumes_without_loss(api: Api) -> None:
    count, size = 5000, 3000

    async def commit() -> None:
        fresh = [Notification("1", seq, "store.closed", {"x": "x" * size}, 0)
                 for seq in range(1, count + 1)]  # fmt: skip
        async with api.cron.parts.database.begin() as connection:
            await connection.execute(
                insert(store_states).values(store_id="1", notification_seq=count)
            )
            await rows.append(connection, fresh)
        for each in fresh:
            api.cron.parts.hub.deliver("1", each.seq, cloud_event(each))
            await asyncio.sleep(0)

    async with client(api.port, ["1"]) as events:
        getting = asyncio.create_task(take(events, 1))
        await watched(api, "1")
        socket = its_socket(api)
        await commit()
        got = await getting
        await ended(socket, 4408)
        got += await take(events, count - 1)
        await nothing_more(events)
    assert got == [("1", seq) for seq in range(1, count + 1)]


async def test_a_user_who_does_not_iterate_is_not_read_for(api: Api) -> None:
    async with client(api.port, ["1"]) as events:
        getting = asyncio.create_task(take(events, 1))
        await watched(api, "1")
        await turn(api, "1")
        await getting
        (receiver,) = api.cron.parts.hub._subscriptions
        for seq in range(2, 60):
            event = Notification("1", seq, "store.closed", {"x": "x" * 100_000}, 0)
            api.cron.parts.hub.deliver("1", seq, cloud_event(event))
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while receiver.pending:  # until it has gone to the kernels, or no more of it goes
                before = receiver.pending
                await asyncio.sleep(0.3)
                if receiver.pending == before:
                    break
        assert events._ws is not None
        assert events._ws._reader._size < 1024 * 1024  # what the client itself holds


async def test_a_server_that_leaves_is_come_back_to_when_it_asks(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setattr("solocron.web.connections._SPREAD_MS", (400, 400))
    async with with_shops() as one, serving() as other:
        urls = [f"ws://127.0.0.1:{each.port}/ws" for each in (one, other)]
        async with Client(urls, {"1": 0}, token=token(), retry_s=(50, 50)) as events:
            await turn(one, "1")
            assert await take(events, 1) == [("1", 1)]
            getting = asyncio.create_task(take(events, 1))
            await asyncio.sleep(0)
            connections: Connections = one.cron.parts.connections
            await connections.drain()
            await watched(other, "1")  # by the other one, and not after 50 s
            await other.call("POST", "/api/v1/stores/1/close", auth=token())
            assert await getting == [("1", 2)]
    assert "1001 reconnect-after-ms=" in caplog.text


@pytest.mark.parametrize("lost", [("requests",), ("replies",), ("requests", "replies")])
async def test_a_server_that_is_half_open_is_left(api: Api, lost: tuple[str, ...]) -> None:
    async with Proxy(api.port) as proxy:
        urls = [f"ws://127.0.0.1:{port}/ws" for port in (proxy.port, api.port)]
        async with Client(urls, {"1": 0}, token=token(), retry_s=QUICK, heartbeat_s=0.4) as events:
            await turn(api, "1")
            assert await take(events, 1) == [("1", 1)]
            socket = its_socket(api)
            await nothing_more(events, 1.7)  # it is asked, more than once, and answers
            assert its_socket(api) is socket
            proxy.swallow(*lost)
            await api.call("POST", "/api/v1/stores/1/close", auth=token())
            assert await take(events, 1) == [("1", 2)]
            await nothing_more(events)


async def test_polls_find_a_half_open_server_too(api: Api) -> None:
    async with (
        Proxy(api.port) as proxy,
        client(proxy.port, {"1": 0}, heartbeat_s=0.4, within_s=0.3) as events,
    ):
        await turn(api, "1")
        assert await take(events, 1) == [("1", 1)]
        proxy.swallow("requests", "replies")
        for _ in range(100):
            await nothing_more(events, 0.05)
            if not events.is_connected:
                break
        assert not events.is_connected
        await proxy.mend()
        await api.call("POST", "/api/v1/stores/1/close", auth=token())
        assert await take(events, 1) == [("1", 2)]


async def test_a_wait_that_is_cancelled_loses_nothing(api: Api) -> None:
    async with client(api.port, {"1": 0}) as events:
        got: list[Event] = []
        changing = asyncio.create_task(change(api, 40))
        async with asyncio.timeout(30):
            while len(got) < 40:
                try:
                    async with asyncio.timeout(0.004):
                        got.append(await anext(events))
                except TimeoutError:
                    pass
        await changing
    assert [each.seq for each in got] == list(range(1, 41))


async def change(api: Api, count: int) -> None:
    for number in range(count):
        action = "close" if number % 2 else "open"
        await api.call("POST", f"/api/v1/stores/1/{action}", auth=token())


async def test_a_close_from_another_task_ends_the_iteration(api: Api) -> None:
    async with aiohttp.ClientSession() as http:
        for turns, own in product(range(60), (None, http)):
            for port in (api.port, 1):  # where nobody listens it waits for the next try
                async with client(port, ["1"], retry_s=(60, 60), http=own) as events:
                    getting = asyncio.create_task(collect(events))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await events.close()
                    async with asyncio.timeout(5):
                        assert await getting == []
                    await nobody_left(api)


async def collect(events: Client) -> list[Event]:
    return [each async for each in events]


async def test_one_task_iterates_within_the_block(api: Api) -> None:
    events = client(api.port, ["1"])
    with pytest.raises(RuntimeError, match="async with"):
        await anext(events)
    async with events:
        getting = asyncio.create_task(collect(events))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task"):
            await anext(events)
        await events.close()
        await getting


async def test_bursts_are_waited_for_by_tcp(api: Api) -> None:
    """What is sent in one go comes whole and in order, also to a renewed request."""
    async with client(api.port, ["1"]) as events:
        getting = asyncio.create_task(anext(events))
        await watched(api, "1")
        for seq in range(1, 200):
            event = Notification("1", seq, "store.closed", {"x": "x" * 5000}, 0)
            api.cron.parts.hub.deliver("1", seq, cloud_event(event))
        await events.subscribe({"2": 0})
        first = await getting
        assert [(first.store_id, first.seq), *await take(events, 198)] == [
            ("1", seq) for seq in range(1, 200)
        ]
        await watched(api, "1", "2")


async def test_a_session_of_the_users_own_stays_open(api: Api) -> None:
    async with aiohttp.ClientSession() as http:
        async with client(api.port, {"1": 0}, http=http) as events:
            await turn(api, "1")
            assert await take(events, 1) == [("1", 1)]
        await nobody_left(api)
        assert not http.closed
