"""A whole service whose stores are kept elsewhere: in a host's table, and by a host's adapter."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from test_metrics import calm
from test_operations import basic
from test_web import Api, serving, token

from clients import Listener, connected, subscribe
from commands import APP, Cli
from conftest import SECRET, RedisServer, fresh_database
from shops_table import SHOPS_SETTINGS, Adapter, create_shops, put_shops
from solocron.service import Solocron
from solocron.settings import load
from solocron.stores import Store

__all__ = ["calm"]

_APP = """
import os
from shops_table import Adapter
from solocron import Solocron
from solocron.storage.engine import Database


class Closing(Adapter):
    # It closes what it has opened: a command ends after it has looked.

    async def page(self, *args, **named):
        try:
            return await super().page(*args, **named)
        finally:
            await self._database.close()


cron = Solocron.from_env(stores=Closing(Database(os.environ["DATABASE_URL"])))
"""
_READ_ONLY = {"mapped": "the table 'shops', which is not solocron's", "adapter": "the host's"}


@dataclass
class Elsewhere:
    """A host's stores: how a test puts some, and the service over them."""

    kind: str
    put: Callable[[Sequence[Store]], Awaitable[None]]
    adapter: Adapter | None

    def service(self) -> Solocron:
        return Solocron(load(), stores=self.adapter)


@pytest.fixture(params=["mapped", "adapter"])
async def elsewhere(
    request: pytest.FixtureRequest, calm: pytest.MonkeyPatch, database_url: str
) -> AsyncIterator[Elsewhere]:
    calm.setenv("DATABASE_URL", database_url)
    async with fresh_database(database_url) as database:
        if request.param == "mapped":
            await create_shops(database)
            for name, value in SHOPS_SETTINGS.items():
                calm.setenv(name, value)
            yield Elsewhere("mapped", partial(put_shops, database), None)
        else:
            adapter = Adapter(database)
            await adapter.create()
            yield Elsewhere("adapter", adapter.add, adapter)


@pytest.fixture
async def api(elsewhere: Elsewhere) -> AsyncIterator[Api]:
    """The service; its stores 11 and 12 are open, 13 and 14 closed; 11 and 13 are always closed
    by their hours, 12 and 14 never."""
    await elsewhere.put([
        Store(str(number), f"Store {number}", "Europe/Berlin", hours, is_open=number < 13)
        for number, hours in ((11, "off"), (12, "24/7"), (13, "off"), (14, "24/7"))
    ])  # fmt: skip
    async with serving(elsewhere.service()) as api:
        yield api


async def are_open(api: Api) -> list[str]:
    _, body = await api.call("GET", "/api/v1/stores?open=true", auth=token())
    return [each["id"] for each in body["stores"]]


async def test_rest_reads_opens_and_closes_and_says_that_it_describes_none(
    api: Api, elsewhere: Elsewhere
) -> None:
    auth, path = token(), "/api/v1/stores/13"
    assert await are_open(api) == ["11", "12"]
    _, page = await api.call("GET", "/api/v1/stores?limit=3&after=11", auth=auth)
    assert [each["id"] for each in page["stores"]] == ["12", "13", "14"]
    assert page["next"] == "14"
    for action, seq in (("open", 1), ("open", 1), ("close", 2)):
        status, store = await api.call("POST", f"{path}/{action}", auth=auth)
        assert (status, store["notification_seq"]) == (200, seq)
        assert ("13" in await are_open(api)) == (action == "open")
    status, got = await api.call("GET", path, auth=auth)
    assert (status, got) == (200, store)
    assert (got["name"], got["timezone"], got["hours"]) == ("Store 13", "Europe/Berlin", "off")
    for unknown in ("99", "no-such-store"):
        for method, rest in (("GET", ""), ("POST", "/open")):
            status, body = await api.call(method, f"/api/v1/stores/{unknown}{rest}", auth=auth)
            assert status == 404 and repr(unknown) in body["detail"]
    described = {"name": "New", "timezone": "UTC", "hours": "24/7"}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{api.port}") as http,
        http.put(path, json=described, headers={"Authorization": f"Bearer {auth}"}) as answer,
    ):
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
        assert answer.content_type == "application/problem+json"
        assert _READ_ONLY[elsewhere.kind] in (await answer.json())["detail"]
    assert await api.call("GET", path, auth=auth) == (200, store)


async def test_both_jobs_change_and_tell_of_what_is_due_once(api: Api) -> None:
    for job, field, due in (
        ("store-auto-close", "closed", 1),
        ("store-auto-close", "closed", 0),
        ("store-open-reminder", "reminded", 1),
        ("store-open-reminder", "reminded", 1),  # by hand: a tick of its own
    ):
        outcome = await api.cron.run_job(job)
        assert (outcome.state, outcome.result) == ("succeeded", {field: due}), job
    assert await are_open(api) == ["12"]
    async with connected(api.port, token()) as ws:
        await subscribe(ws, dict.fromkeys(("11", "12", "13", "14"), 0))
        listener = Listener()
        await listener.listen(ws, until=3)
    assert [(each["id"], each["type"], each["data"]["name"]) for each in listener.events] == [
        ("11:1", "store.closed", "Store 11"),
        ("14:1", "store.open-reminder", "Store 14"),
        ("14:2", "store.open-reminder", "Store 14"),
    ]


async def test_the_summary_and_the_dashboard_count_them(api: Api) -> None:
    status, summary = await api.call("GET", "/api/v1/summary", auth=token(scope="metrics:read"))
    assert status == 200
    assert summary["stores"] == {"stores": 4, "open": 2, "to_close": 1, "to_remind": 1}
    status, page = await api.call("GET", "/dashboard", Authorization=basic(token()))
    assert status == 200
    for name, count in (("Stores", 4), ("Open", 2)):
        assert f"<dt>{name}</dt><dd>{count}</dd>" in page


async def test_a_subscription_names_unknown_stores_and_is_resumed(api: Api) -> None:
    auth = token()
    async with connected(api.port, auth) as ws:
        await ws.send_json({"type": "subscribe", "stores": {"11": None, "99": None, "x": 4}})
        frames = [await ws.receive_json(), await ws.receive_json()]
        found = {each["type"]: each for each in frames}
        assert list(found["subscribed"]["stores"]) == ["11"]
        assert found["error"]["code"] == "unknown-store"
        assert sorted(found["error"]["stores"]) == ["99", "x"]
        await api.call("POST", "/api/v1/stores/11/close", auth=auth)
        heard = Listener()
        await heard.listen(ws, until=1)
    assert heard.seqs == {"11": [1]} and heard.events[0]["data"]["name"] == "Store 11"
    for action in ("open", "close"):
        await api.call("POST", f"/api/v1/stores/11/{action}", auth=auth)
    async with connected(api.port, auth) as ws:
        answer = await subscribe(ws, heard.last)
        assert answer["11"] == {"seq": 3, "recovered": True}
        await heard.listen(ws, until=3)
    heard.assert_each_once(["11"], 3)


async def test_the_command_line_lists_them_and_imports_none(
    api: Api, elsewhere: Elsewhere, redis_server: RedisServer, database_url: str, tmp_path: Path
) -> None:
    variables = {"REDIS_URL": redis_server.url, "DATABASE_URL": database_url,
                 "SOLOCRON_AUTH_SECRET": SECRET}  # fmt: skip
    if elsewhere.kind == "mapped":
        variables |= SHOPS_SETTINGS
    else:
        (tmp_path / "own.py").write_text(_APP)
        tests = Path(__file__).parents[1]
        variables |= {"SOLOCRON_APP": "own:cron", "PYTHONPATH": f"{APP}{os.pathsep}{tests}"}
    cli = Cli(tmp_path, variables)
    try:
        await api.call("POST", "/api/v1/stores/13/open", auth=token())
        listed = await cli("stores", "list", "--json")
        assert listed.code == 0, listed.err
        assert [(each["id"], each["is_open"], each["notification_seq"])
                for each in json.loads(listed.out)] == [
            ("11", True, 0), ("12", True, 0), ("13", True, 1), ("14", False, 0),
        ]  # fmt: skip
        paged = await cli("stores", "list", "--after", "12", "--limit", "1", "--json")
        assert [each["id"] for each in json.loads(paged.out)] == ["13"]
        (tmp_path / "stores.csv").write_text("id,name,timezone,hours\n11,New,UTC,24/7\n")
        refused = await cli("stores", "import", "stores.csv")
        assert refused.code == 2 and "stores are kept" in refused.complaint
    finally:
        await cli.close()
