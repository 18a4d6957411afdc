"""Server-Sent Events on real sockets: what is sent, from where it resumes, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from itertools import product
from typing import Any

import aiohttp
import pytest
import uvloop
from sqlalchemy import delete
from test_socket import burst, handlers, nobody_left, overwhelm
from test_web import READER, Api, put, serving, token

from clients import Listener
from servers import Commit
from solocron.clock import SystemClock
from solocron.errors import StorageUnavailable
from solocron.storage.tables import notifications
from streams import Event, StreamClient


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving() as api:
        await put(api, "1", "2", "3")
        yield api


async def change(api: Api, store_id: str, times: int = 1) -> None:
    """The next notifications of a store, by the API."""
    for _ in range(times):
        _, store = await api.call("GET", f"/api/v1/stores/{store_id}", auth=token())
        action = "close" if store["is_open"] else "open"
        path = f"/api/v1/stores/{store_id}/{action}"
        assert (await api.call("POST", path, auth=token()))[0] == 200


async def opened(
    api: Api, stores: str, *headers: str, **options: Any
) -> tuple[StreamClient, Event]:
    """A stream of these stores, and its first event."""
    options = {"auth": token(), **options}
    client = await StreamClient.connect(api.port, f"?stores={stores}", *headers, **options)
    assert client.status == 200, await client.problem()
    first = await client.event()
    assert first.event == "subscribed" and first.json["type"] == "subscribed"
    return client, first


async def heard(client: StreamClient, count: int) -> list[str]:
    """The `id` of the next notifications, of the CloudEvents themselves."""
    found = []
    for _ in range(count):
        event = await client.event()
        assert event.event == ""
        found.append(event.json["id"])
    return found


async def nothing_more(client: StreamClient, within_s: float = 0.2) -> None:
    with pytest.raises(TimeoutError):
        await client.event(within_s)


# -- what is sent ----------------------------------------------------------------------------


async def test_a_stream_begins_with_where_it_stands_and_goes_on_with_cloud_events(
    api: Api,
) -> None:
    await change(api, "1", 2)
    client = await StreamClient.connect(api.port, "?stores=1:0,2", auth=READER)
    assert client.status == 200
    wanted = {"content-type": "text/event-stream", "cache-control": "no-store",
              "x-accel-buffering": "no", "x-content-type-options": "nosniff",
              "transfer-encoding": "chunked", "connection": "close"}  # fmt: skip
    assert wanted.items() <= client.headers.items()
    assert "content-encoding" not in client.headers
    start = await client.block()
    assert start is not None and 1000 <= int(start.retry) <= 5000 and not start.data
    first = await client.event()
    stores = {"1": {"seq": 2, "recovered": True}, "2": {"seq": 0, "recovered": True}}
    assert first.json == {"type": "subscribed", "stores": stores}
    assert (first.event, first.id) == ("subscribed", "1:0,2:0")
    second, third = await client.event(), await client.event()
    assert (second.event, second.id, third.id) == ("", "1:1,2:0", "1:2,2:0")
    assert second.json["specversion"] == "1.0" and second.json["id"] == "1:1"
    await change(api, "2")
    await change(api, "1")
    await change(api, "3")
    fourth, fifth = await client.event(), await client.event()
    assert (fourth.id, fifth.id) == ("1:2,2:1", "1:3,2:1")
    await nothing_more(client)
    client.close()
    await nobody_left(api)


async def test_the_events_are_those_of_the_websocket(api: Api) -> None:
    client, _ = await opened(api, "1")
    every, _ = await opened(api, "*")
    await change(api, "1")
    event, numbered = (await client.event()).json, (await every.event()).json
    assert numbered.pop("feedsequence") == f"{1:020d}"
    assert event == numbered and event["type"] == "store.opened"
    client.close()
    every.close()


async def test_all_stores_are_one_feed_that_resumes(api: Api) -> None:
    client, first = await opened(api, "*")
    assert first.id == "*:0"
    for store_id in "312":
        await change(api, store_id)
        assert await heard(client, 1) == [f"{store_id}:1"]
    assert client.last_id == "*:3"
    client.close()
    client, first = await opened(api, "*", "Last-Event-ID: *:1")
    assert (first.json["stores"], first.id) == ({"*": {"seq": 3, "recovered": True}}, "*:1")
    assert await heard(client, 2) == ["1:1", "2:1"]
    client.close()


@pytest.mark.parametrize("agent", ["HTTP/1.0", "HTTP/1.1"])
async def test_a_client_of_either_http_is_served(api: Api, agent: str) -> None:
    client, _ = await opened(api, "1:0", version=agent.removeprefix("HTTP/"))
    assert ("transfer-encoding" in client.headers) == (agent == "HTTP/1.1")
    await change(api, "1")
    assert await heard(client, 1) == ["1:1"]
    await asyncio.gather(api.cron.parts.connections.drain(), end := asyncio.Task(client.rest()))
    assert end.result()[-1].retry and client.is_whole
    api.cron.parts.connections.accept()


async def test_a_burst_is_whole_and_in_order(api: Api) -> None:
    client, _ = await opened(api, "1")
    burst(api, 1, 500, 5_000)
    seqs = [int((await client.event()).data.partition("|")[0]) for _ in range(500)]
    assert seqs == list(range(1, 501)) and client.last_id == "1:500"
    client.close()


async def test_a_fetch_of_aiohttp_reads_the_stream(api: Api) -> None:
    url = f"http://127.0.0.1:{api.port}/events?stores=1:0&stores=2"
    await change(api, "1")
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token()}"}) as http,
        http.get(url) as answer,
    ):
        assert answer.content_type == "text/event-stream"
        lines = [await answer.content.readline() for _ in range(8)]
    assert lines[2:4] == [b"event: subscribed\n", b"id: 1:0,2:0\n"]
    assert lines[6] == b"id: 1:1,2:0\n"
    await nobody_left(api)


# -- resuming --------------------------------------------------------------------------------


async def test_a_client_that_comes_back_has_each_once(api: Api) -> None:
    listener = Listener()
    client, _ = await opened(api, "1:0,2:0,3:0")
    for store_id in "1233211":
        await change(api, store_id)
    for _ in range(4):
        listener.hear((await client.event()).data)
    client.close()
    for how in ("header", "query", "header"):
        await change(api, "2")
        last_id = client.last_id
        if how == "header":
            client, _ = await opened(api, "1,2,3", f"Last-Event-ID: {last_id}")
        else:
            client, _ = await opened(api, f"1,2,3&lastEventId={last_id}")
        for _ in range(2):
            listener.hear((await client.event()).data)
        client.close()
    assert {each: seqs == list(range(1, len(seqs) + 1)) for each, seqs in listener.seqs.items()}
    assert sum(map(len, listener.seqs.values())) == 10
    for seqs in listener.seqs.values():
        assert seqs == list(range(1, len(seqs) + 1))


async def test_what_is_lost_before_the_first_event_comes_again(api: Api) -> None:
    await change(api, "1", 3)
    client, first = await opened(api, "1")
    assert first.id == "1:3"
    client.close()
    await change(api, "1")
    client, first = await opened(api, "1", f"Last-Event-ID: {first.id}")
    assert await heard(client, 1) == ["1:4"]
    client.close()


STARTS: list[tuple[str, str, str, list[str]]] = [
    ("1,2", "1:1", "1:1,2:2", ["1:2"]),  # a store that is new in this stream
    ("1,2:1", "1:1", "1:1,2:1", ["1:2", "2:2"]),  # and one with a start
    ("1:0,2", "1:1,2:2", "1:1,2:2", ["1:2"]),  # the later position counts
    ("1", "1:1,3:7,9:4", "1:1", ["1:2"]),  # stores that are not asked for
    ("1:2", "", "1:2", []),
    ("1:0", "", "1:0", ["1:1", "1:2"]),
]


async def test_where_each_store_starts(api: Api) -> None:
    for store_id in ("1", "2"):
        await change(api, store_id, 2)
    for stores, last_id, begins, comes in STARTS:
        headers = [f"Last-Event-ID: {last_id}"] if last_id else []
        client, first = await opened(api, stores, *headers)
        assert first.id == begins
        assert sorted(await heard(client, len(comes))) == comes
        await nothing_more(client, 0.05)
        client.close()


async def test_the_header_counts_before_the_query(api: Api) -> None:
    await change(api, "1", 3)
    client, first = await opened(api, "1&lastEventId=1:0", "Last-Event-ID: 1:2")
    assert first.id == "1:2"
    client.close()


async def test_a_hundred_of_the_longest_ids_resume_by_one_header(api: Api) -> None:
    ids = [f"{number:03d}" + "x" * 61 for number in range(100)]
    for each in ids:
        await put(api, each)
    client, _ = await opened(api, ",".join(ids))
    await change(api, ids[7])
    await change(api, ids[99])
    assert await heard(client, 1) == [f"{ids[7]}:1"]
    last_id = client.last_id
    client.close()
    longest = last_id.replace(":", ":" + "0" * 11)  # seqs of 12 digits
    assert len(longest) == 100 * 78 - 1
    client, first = await opened(api, ",".join(ids), f"Last-Event-ID: {longest}")
    assert first.id == last_id
    assert await heard(client, 1) == [f"{ids[99]}:1"]
    client.close()


async def prune(api: Api, store_id: str, up_to: int) -> None:
    async with api.cron.parts.database.begin() as connection:
        is_old = (notifications.c.store_id == store_id) & (notifications.c.seq <= up_to)
        await connection.execute(delete(notifications).where(is_old))


async def test_a_history_that_was_pruned_is_told_and_gone_on_from(api: Api) -> None:
    await change(api, "1", 5)
    await prune(api, "1", 3)
    client, first = await opened(api, "1:1,2")
    assert first.json["stores"]["1"] == {"seq": 5, "recovered": False}
    assert first.id == "1:3,2:0"
    client.close()
    client, again = await opened(api, "1,2", f"Last-Event-ID: {first.id}")
    assert again.json["stores"]["1"] == {"seq": 5, "recovered": True}
    assert await heard(client, 2) == ["1:4", "1:5"]
    client.close()
    await prune(api, "1", 5)
    client, first = await opened(api, "1:1")
    assert (first.json["stores"]["1"]["recovered"], first.id) == (False, "1:5")
    client.close()
    client, first = await opened(api, "1:77")  # it has seen what was never there
    assert (first.json["stores"]["1"]["recovered"], first.id) == (False, "1:5")
    client.close()


async def test_a_history_pruned_under_a_stream_is_told(api: Api) -> None:
    client, _ = await opened(api, "1,2")
    await Commit(api.cron.parts.database)("1", 5)
    await prune(api, "1", 3)
    api.cron.parts.hub.resync()
    told = await client.event()
    assert told.event == "subscribed"
    assert told.json["stores"] == {"1": {"seq": 3, "recovered": False}}
    assert told.id == "1:3,2:0"
    assert await heard(client, 2) == ["1:4", "1:5"]
    assert client.last_id == "1:5,2:0"
    client.close()


# -- what is refused -------------------------------------------------------------------------

MANY = ",".join(map(str, range(101)))


USELESS = [
    ("", "", 422, "stores is missing"),
    ("?store=1", "", 422, "stores is missing"),
    ("?stores=", "", 422, "stores has ''"),
    ("?stores=1,,2", "", 422, "stores has ''"),
    ("?stores=1:", "", 422, "'1:'"),
    ("?stores=1:x", "", 422, "'1:x'"),
    ("?stores=1:-1", "", 422, "'1:-1'"),
    ("?stores=1:%D9%A1", "", 422, "stores has"),
    ("?stores=1:9223372036854775808", "", 422, "'1:9223372036854775808'"),
    ("?stores=1:1:1", "", 422, "'1:1:1'"),
    ("?stores=a%20b", "", 422, "'a b'"),
    ("?stores=%00", "", 422, "stores has"),
    ("?stores=%ff", "", 422, "stores has"),
    ("?stores=1&stores=1:3", "", 422, "'1' twice"),
    ("?stores=" + "x" * 65, "", 422, "stores has"),
    (f"?stores={MANY}", "", 422, "the WebSocket takes more"),
    ("?stores=1", "nonsense!", 422, "Last-Event-ID has 'nonsense!'"),
    ("?stores=1", "1", 422, "Last-Event-ID has '1'"),
    ("?stores=1", "1:1,", 422, "Last-Event-ID has ''"),
    ("?stores=1", "1:1;2:2", 422, "Last-Event-ID has '1:1;2:2'"),
    ("?stores=1", "\u00e9:1", 422, "Last-Event-ID has"),
    ("?stores=1&lastEventId=1:x", "", 422, "Last-Event-ID has '1:x'"),
    ("?stores=1,9", "", 404, "store '9'"),
]


async def test_a_request_of_no_use_is_a_problem_that_names_it(api: Api) -> None:
    for query, header, status, says in USELESS:
        headers = [f"Last-Event-ID: {header}"] if header else []
        client = await StreamClient.connect(api.port, query, *headers, auth=token())
        problem = await client.problem()
        assert (client.status, problem["status"]) == (status, status), query
        assert says in problem["detail"]
        client.close()
    await nobody_left(api)


REFUSED = [
    (None, "?stores=1", 401),
    ("nonsense", "?stores=1", 401),
    (token(exp=1), "?stores=1", 401),
    (None, f"?stores=1&token={token()}", 401),  # never in the URL
    (None, f"?stores=1&access_token={token()}", 401),
    (token(scope="stores:write"), "?stores=1", 403),
    (READER, "?stores=1,3", 403),
    (READER, "?stores=*", 403),
    (token(stores=["*"]), "?stores=*", 403),
]


async def test_who_may_not_is_told_before_the_stream_begins(api: Api) -> None:
    for auth, query, status in REFUSED:
        client = await StreamClient.connect(api.port, query, auth=auth)
        problem = await client.problem()
        assert (client.status, problem["status"]) == (status, status), query
        assert ("www-authenticate" in client.headers) == (status == 401)
        assert "eyJ" not in json.dumps(problem)
        client.close()


async def test_other_methods_are_refused(api: Api) -> None:
    for method in ("HEAD", "POST", "PUT", "DELETE"):
        client = await StreamClient.connect(api.port, "?stores=1", auth=token(), method=method)
        assert (client.status, client.headers["allow"]) == (405, "GET,OPTIONS")
        client.close()


async def test_without_the_database_nothing_begins(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: Any) -> Any:
        raise StorageUnavailable("away")

    monkeypatch.setattr(api.cron.parts.hub._outbox, "heads", away)
    for stores in ("1", "*"):
        client = await StreamClient.connect(api.port, f"?stores={stores}", auth=token())
        assert (client.status, client.headers["retry-after"]) == (503, "5")
        assert "database" in (await client.problem())["detail"]
        client.close()
    await nobody_left(api)


async def test_a_database_that_goes_as_the_stream_begins_ends_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: Any) -> Any:
        raise StorageUnavailable("away")

    monkeypatch.setattr(api.cron.parts.hub, "subscribe", away)
    client = await StreamClient.connect(api.port, "?stores=1", auth=token())
    assert (client.status, await client.rest(), client.is_whole) == (200, [], True)
    await nobody_left(api)


async def test_a_fault_of_ours_ends_the_stream_and_is_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any) -> Any:
        raise KeyError("password")

    monkeypatch.setattr(api.cron.parts.hub, "subscribe", broken)
    client = await StreamClient.connect(api.port, "?stores=1", auth=token())
    assert (client.status, await client.rest(), client.is_whole) == (200, [], True)
    assert "an event stream failed" in caplog.text
    await nobody_left(api)


# -- pages of other origins ------------------------------------------------------------------

PAGE = "https://shop.example"


@pytest.fixture
async def shared(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    environment.setenv("SOLOCRON_ORIGINS", f"{PAGE}, https://other.example")
    async with serving() as api:
        await put(api, "1")
        yield api


async def test_a_page_of_an_allowed_origin_may_read(shared: Api) -> None:
    client, _ = await opened(shared, "1", f"Origin: {PAGE}")
    assert client.headers["access-control-allow-origin"] == PAGE
    assert client.headers["vary"] == "Origin"
    client.close()
    for auth, query, status in ((None, "?stores=1", 401), (token(), "?stores=9", 404)):
        client = await StreamClient.connect(shared.port, query, f"Origin: {PAGE}", auth=auth)
        assert (client.status, client.headers["access-control-allow-origin"]) == (status, PAGE)
        client.close()


async def test_its_browser_is_told_so_before(shared: Api) -> None:
    asks = ["Access-Control-Request-Method: GET",
            "Access-Control-Request-Headers: authorization,last-event-id"]  # fmt: skip
    client = await StreamClient.connect(
        shared.port, "?stores=1", f"Origin: {PAGE}", *asks, method="OPTIONS"
    )
    assert (client.status, client.headers["access-control-allow-origin"]) == (204, PAGE)
    assert client.headers["access-control-allow-methods"] == "GET"
    assert client.headers["access-control-allow-headers"] == "Authorization, Last-Event-ID"
    assert "access-control-allow-credentials" not in client.headers
    client.close()


STRANGERS = ("https://evil.example", "null", "http://shop.example", f"{PAGE}.evil.example", "é")


async def test_a_page_of_another_origin_may_not(shared: Api) -> None:
    for origin, method in product(STRANGERS, ("GET", "OPTIONS")):
        client = await StreamClient.connect(
            shared.port, "?stores=1", f"Origin: {origin}", auth=token(), method=method
        )
        assert client.status == 403 and "access-control-allow-origin" not in client.headers
        client.close()


async def test_an_origin_that_no_header_can_hold_is_not_echoed(shared: Api) -> None:
    client = await StreamClient.connect(
        shared.port, "?stores=9", f"Origin: {PAGE}/\u00e9", auth=token()
    )
    assert client.status == 404 and "access-control-allow-origin" not in client.headers
    client.close()


async def test_a_page_of_this_host_needs_no_leave(api: Api) -> None:
    client, _ = await opened(api, "1", f"Origin: http://127.0.0.1:{api.port}")
    assert "access-control-allow-origin" not in client.headers
    client.close()


# -- seats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("MAX_CONNECTIONS_PER_TOKEN", "of this token"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "of this address"),
        ("MAX_CONNECTIONS", "this server has too many"),
    ],
)
async def test_seats_are_those_of_the_websocket(
    environment: pytest.MonkeyPatch, setting: str, says: str
) -> None:
    environment.setenv(f"SOLOCRON_{setting}", "1")
    async with serving() as api:
        await put(api, "1")
        client, _ = await opened(api, "1")
        late = await StreamClient.connect(api.port, "?stores=1", auth=token())
        assert (late.status, late.headers["retry-after"]) == (429, "5")
        assert says in (await late.problem())["detail"]
        late.close()
        client.close()
        await nobody_left(api)
        client, _ = await opened(api, "1")
        client.close()
        missing = await StreamClient.connect(api.port, "?stores=9", auth=token())
        assert missing.status in (404, 429)
        missing.close()
        await nobody_left(api)


# -- the end ---------------------------------------------------------------------------------


async def test_a_token_that_ends_ends_the_stream(api: Api) -> None:
    soon = token(exp=SystemClock().now_ms() / 1000 - 4.5)  # 5 s of leeway
    client, _ = await opened(api, "1", auth=soon)
    burst(api, 1, 3, 10)
    *_, end = await client.rest()
    assert (end.event, end.id) == ("end", "") and client.is_whole
    assert end.json == {"code": 4401, "reason": "the token has expired"}
    assert client.last_id == "1:3"
    client = await StreamClient.connect(api.port, "?stores=1", auth=soon)
    assert client.status == 401
    client.close()
    await nobody_left(api)


async def test_a_drain_sends_each_away_for_another_time(api: Api) -> None:
    clients = [(await opened(api, "1"))[0] for _ in range(20)]
    await api.cron.parts.connections.drain()
    delays = []
    for client in clients:
        last = (await client.rest())[-1]
        assert client.is_whole and not last.data
        delays.append(int(last.retry))
    assert [delay * 20 // 5_000 for delay in sorted(delays)] == list(range(20))
    await nobody_left(api, 0.1)
    late = await StreamClient.connect(api.port, "?stores=1", auth=token())
    assert (late.status, late.headers["retry-after"]) == (503, "5")
    assert "going away" in (await late.problem())["detail"]
    late.close()
    api.cron.parts.connections.accept()
    client, _ = await opened(api, "1")
    client.close()


async def test_a_drain_while_a_client_is_looked_up_ends_it_too(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def unknown(store_ids: Any) -> list[str]:
        asked.set()
        await go.wait()
        return []

    monkeypatch.setattr(api.cron.parts.hub, "unknown", unknown)
    coming = asyncio.Task(StreamClient.connect(api.port, "?stores=1", auth=token()))
    await asked.wait()
    draining = asyncio.Task(api.cron.parts.connections.drain())
    await asyncio.sleep(0)
    go.set()
    client = await coming
    (only,) = await client.rest()
    assert only.retry and client.is_whole
    await draining
    api.cron.parts.connections.accept()


async def test_a_client_that_is_too_slow_is_cut_and_resumes(api: Api) -> None:
    client, _ = await opened(api, "1")
    await overwhelm(api)
    await nobody_left(api)
    seqs = [int(each.data.partition("|")[0]) for each in await client.rest() if each.data]
    assert seqs == list(range(1, len(seqs) + 1)) and not client.is_whole
    assert client.last_id == f"1:{len(seqs)}" if seqs else "1:0"


async def test_a_long_history_is_paced_to_its_client(api: Api) -> None:
    await Commit(api.cron.parts.database)("1", 5_000)
    client, _ = await opened(api, "1:0")
    for seq in range(1, 5_001):
        event = await client.event()
        assert event.id == f"1:{seq}"
    client.close()


@pytest.fixture
async def beating(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """A service with store 1 whose heart beats each half second."""
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")
    async with serving() as api:
        await put(api, "1")
        yield api


async def test_who_takes_nothing_more_is_cut_within_three_heartbeats(beating: Api) -> None:
    client, _ = await opened(beating, "1")
    burst(beating, 1, 2, 100_000)  # far from too much, but more than its kernel takes
    loop = asyncio.get_running_loop()
    began = loop.time()
    await nobody_left(beating)
    assert 0.9 < loop.time() - began < 2.5
    client.close()


async def test_a_silent_stream_has_a_comment_each_heartbeat(beating: Api) -> None:
    client, _ = await opened(beating, "1")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(1, 9):  # while there is news, none is due
        burst(beating, number, 1, 10)
        assert (await client.block()) == Event(id=f"1:{number}", data=f"{number}|{'x' * 10}")
        await asyncio.sleep(0.2)
    news = loop.time() - 0.2
    assert await client.block() == Event(comment="keep-alive")
    assert 0.4 < loop.time() - news < 0.8
    assert await client.block() == Event(comment="keep-alive")
    assert 0.9 < loop.time() - news < 1.4 and loop.time() - began > 2.4
    client.close()
    await nobody_left(beating)


@pytest.mark.parametrize("how", [StreamClient.close, StreamClient.reset, StreamClient.shut])
@pytest.mark.parametrize("pipelined", [0, 1, 60])  # at 32 the server would read no more
async def test_who_goes_is_forgotten_at_once(
    api: Api, how: Callable[[StreamClient], None], pipelined: int
) -> None:
    client, _ = await opened(api, "1", behind=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * pipelined)
    how(client)
    await nobody_left(api, 0.5)
    client.close()


async def test_who_goes_with_much_unread_is_forgotten_at_once(api: Api) -> None:
    client, _ = await opened(api, "1")
    burst(api, 1, 30, 100_000)
    await asyncio.sleep(0.05)
    client.shut()
    await nobody_left(api, 0.5)
    client.close()


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff" * 5_000, b"GET / HTTP/1.1\r\n\r\n", b"x" * 2_000_000, b"\r\n\r\n"]
)
async def test_what_a_client_sends_behind_its_request_is_dropped(api: Api, garbage: bytes) -> None:
    client, _ = await opened(api, "1")
    await client.send(garbage)
    burst(api, 1, 3, 100)
    assert [(await client.event()).id for _ in range(3)] == ["1:1", "1:2", "1:3"]
    client.close()
    await nobody_left(api, 0.5)


async def test_a_body_is_not_waited_for(api: Api) -> None:
    before = len(handlers())
    client, _ = await opened(api, "1", "Content-Length: 5000", behind=b"x" * 10)
    burst(api, 1, 1, 100)
    assert (await client.event()).id == "1:1"
    await api.cron.parts.connections.drain()
    assert (await client.rest())[-1].retry and client.is_whole
    async with asyncio.timeout(1):
        while len(handlers()) > before:
            await asyncio.sleep(0.01)
    api.cron.parts.connections.accept()


async def test_who_goes_while_looked_up_or_resumed_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(handlers())
    hub, asked = api.cron.parts.hub, asyncio.Event()
    known = hub.unknown

    async def slowly(store_ids: Any) -> list[str]:
        asked.set()
        await asyncio.sleep(0.1)
        return await known(store_ids)

    async def never(store_ids: Any) -> dict[str, int]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    request = f"GET /events?stores=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n\r\n"
    for name, slow in (("unknown", slowly), ("_outbox.heads", never)):
        asked.clear()
        with monkeypatch.context() as patch:
            if name == "unknown":
                patch.setattr(hub, name, slow)
            else:
                patch.setattr(hub, "unknown", lambda ids: asyncio.sleep(0, []))
                patch.setattr(hub._outbox, "heads", slow)
            _, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(request.encode())
            await asked.wait()
            writer.transport.abort()
            await nobody_left(api, 1)
    async with asyncio.timeout(1):
        while len(handlers()) > before:
            await asyncio.sleep(0.01)


async def test_cancellation_leaves_no_task_and_no_topic(api: Api) -> None:
    before = set(handlers())
    client, _ = await opened(api, "1,2,3")
    mine = [each for each in handlers() if each not in before]
    assert len(mine) == 2  # aiohttp's for the connection, and its for the request
    for task in mine:
        task.cancel()
    await asyncio.gather(*mine, return_exceptions=True)
    await nobody_left(api, 0.5)
    assert await client.rest() == [] and not client.is_whole


async def test_a_stop_with_streams_open_is_quick_and_leaves_nothing(
    environment: pytest.MonkeyPatch,
) -> None:
    async with serving() as api:
        await put(api, "1")
        clients = [(await opened(api, "1"))[0] for _ in range(5)]
        loop = asyncio.get_running_loop()
        began = loop.time()
    assert loop.time() - began < 2
    for client in clients:
        assert (await client.rest())[-1].retry and client.is_whole
    assert not handlers()


def test_on_uvloop_it_is_the_same(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")

    async def scenario() -> None:
        async with serving() as api:
            await put(api, "1")
            for how in (StreamClient.close, StreamClient.reset, StreamClient.shut):
                client, _ = await opened(api, "1", behind=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
                burst(api, 1, 3, 10)
                assert [(await client.event()).id for _ in range(3)] == ["1:1", "1:2", "1:3"]
                how(client)
                await nobody_left(api, 0.5)
                client.close()
            client, _ = await opened(api, "1")
            burst(api, 1, 2, 100_000)
            await nobody_left(api, 3)
            client.close()
            client, _ = await opened(api, "1")
        assert (await client.rest())[-1].retry and client.is_whole

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
