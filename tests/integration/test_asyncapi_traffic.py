"""Real traffic is as the AsyncAPI document says: each frame of a session that has every message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from sqlalchemy import delete
from test_web import STORE, Api, serving, token

from clients import connected
from contract import Contract
from proxy import Proxy
from shops import CLOSED_NOW
from solocron.storage.engine import Database
from solocron.storage.tables import notifications

Check = Callable[[dict[str, Any]], bool]


class Session:
    """A client that keeps every frame of either direction."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self.said: list[Any] = []
        self.heard: list[dict[str, Any]] = []

    async def say(self, type_: str, **fields: Any) -> None:
        self.said.append({"type": type_, **fields})
        await self._ws.send_json(self.said[-1])

    async def hear(self, type_: str, check: Check = lambda frame: True) -> dict[str, Any]:
        """Frames up to one of that type for which `check` holds."""
        async with asyncio.timeout(20):
            while True:
                frame = json.loads(await self._ws.receive_str())
                self.heard.append(frame)
                if frame["type"] == type_ and check(frame):
                    return frame  # type: ignore[no-any-return] # JSON has no types

    async def refused(self, code: str) -> None:
        await self.hear("error", lambda frame: frame["code"] == code)


@pytest.fixture
async def proxy(environment: pytest.MonkeyPatch, postgres_url: str) -> AsyncIterator[Proxy]:
    """The way to the service's PostgreSQL, which a test can cut."""
    database = Database(postgres_url)
    await database.migrate()
    await database.close()
    async with Proxy.to_postgres(postgres_url) as proxy:
        environment.setenv("DATABASE_URL", proxy.postgres_url(postgres_url))
        yield proxy


@asynccontextmanager
async def session(api: Api) -> AsyncIterator[Session]:
    async with connected(api.port) as ws:
        yield Session(ws)


async def say_everything(api: Api, client: Session) -> None:
    """All but what needs the database away."""
    await client.say("authenticate", token=token())
    await client.hear("authenticated")
    await client.say("ping")
    await client.hear("pong")
    await client.say("subscribe", stores={"1": None, "2": 0, "*": 0})
    await client.hear("subscribed")
    await api.call("POST", "/api/v1/stores/1/open", auth=token())
    await api.call("POST", "/api/v1/stores/2/open", auth=token())
    await api.call("POST", "/api/v1/stores/1/close", auth=token())
    await client.hear("store.closed", lambda frame: "feedsequence" in frame)
    await api.cron.run_job("store-auto-close")
    await client.hear("store.closed", lambda frame: frame["data"]["reason"] == "hours-ended")
    await api.cron.run_job("store-open-reminder")
    await client.hear("store.open-reminder")
    await api.cron.notify("1", "order.placed", {"order": 4711})
    await client.hear("order.placed")
    await client.say("unsubscribe", stores=["2"])
    await client.hear("unsubscribed")
    await client.say("subscribe", stores={"2": 1, "nowhere": None})
    await client.refused("unknown-store")
    await client.say("authenticate", token=token(stores=["1"], scope="notifications:read"))
    assert (await client.hear("unsubscribed"))["stores"] == ["*", "2"]
    await client.say("subscribe", stores={"1": None, "2": 0, "*": 4711})
    await client.refused("forbidden")


async def test_every_frame_of_a_session_is_one_message_and_every_message_is_met(
    environment: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    async with serving() as api, session(api) as client:
        for store_id, hours in (("1", "24/7"), ("2", CLOSED_NOW)):
            path, body = f"/api/v1/stores/{store_id}", {**STORE, "hours": hours}
            assert (await api.call("PUT", path, body, auth=token()))[0] == 201
        _, document = await api.call("GET", "/api/asyncapi.json", auth=token())
        contract = Contract(document)
        await say_everything(api, client)
        async with api.cron.parts.database.begin() as connection:
            await connection.execute(delete(notifications))
        await client.say("subscribe", stores={"1": 0})
        pruned = await client.hear("subscribed")
        assert pruned["stores"]["1"]["recovered"] is False
        await proxy.down()
        await client.say("subscribe", stores={"1": 0})
        await client.refused("unavailable")
        await client.say("subscribe", stores=[])
        await client.refused("invalid")
        await proxy.up()
    assert contract.from_client(client.said.pop()) == []  # the one that was refused
    met = [contract.from_client(frame) for frame in client.said]
    met += [contract.from_server(frame) for frame in client.heard]
    assert [len(names) for names in met] == [1] * len(met), (client.said, client.heard)
    assert {name for names in met for name in names} == contract.received | contract.sent
    assert not any(contract.from_server(frame) for frame in client.said)
    assert not any(contract.from_client(frame) for frame in client.heard)


async def test_without_tokens_a_token_never_ends(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("SOLOCRON_AUTH_SECRET")
    async with serving() as api, session(api) as client:
        await client.say("authenticate", token="whatever")
        answer = await client.hear("authenticated")
        assert answer["expires_in"] is None
        _, document = await api.call("GET", "/api/asyncapi.json")
        assert Contract(document).from_server(answer) == ["authenticated"]


async def test_the_document_is_for_any_good_token_and_nobody_else(
    environment: pytest.MonkeyPatch,
) -> None:
    async with serving() as api:
        for auth, status in ((None, 401), (token(exp=1), 401), (token(stores=[], scope=""), 200)):
            assert (await api.call("GET", "/api/asyncapi.json", auth=auth))[0] == status
