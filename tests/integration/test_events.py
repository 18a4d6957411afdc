"""Server-Sent Events on real sockets: what is sent, and from where it resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from sqlalchemy import delete
from test_socket import burst, nobody_left
from test_web import READER, Api, put, serving, token

from clients import Listener
from servers import Commit
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
