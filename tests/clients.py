"""WebSocket clients of the tests: they keep every notification and their last seq per store."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import WSMsgType


class Listener:
    """What one client heard, over any number of connections."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.seqs: defaultdict[str, list[int]] = defaultdict(list)

    @property
    def last(self) -> dict[str, int]:
        """The last seq of each store heard of."""
        return {store: seqs[-1] for store, seqs in self.seqs.items()}

    def hear(self, text: str) -> dict[str, Any]:
        """Take one frame in."""
        frame: dict[str, Any] = json.loads(text)
        if "specversion" not in frame:
            self.answers.append(frame)
            return frame
        self.events.append(frame)
        store, _, seq = frame["id"].rpartition(":")
        assert int(frame["sequence"]) == int(seq)
        self.seqs[store].append(int(seq))
        return frame

    async def listen(self, ws: aiohttp.ClientWebSocketResponse, until: int | None = None) -> None:
        """Hear frames until `until` notifications are known, or the connection ends."""
        while until is None or len(self.events) < until:
            message = await ws.receive()
            if message.type is not WSMsgType.TEXT:
                return
            self.hear(message.data)

    def assert_each_once(self, stores: Iterable[str], expected: int = 1) -> None:
        """Every store's notifications 1..expected, each once and in order."""
        wanted = {store: list(range(1, expected + 1)) for store in stores}
        assert dict(self.seqs) == wanted


async def subscribe(
    ws: aiohttp.ClientWebSocketResponse, stores: Mapping[str, int | None]
) -> dict[str, Any]:
    """Send a subscribe; its `subscribed` answer, which comes before any notification, and after
    the answers to frames before."""
    await ws.send_json({"type": "subscribe", "stores": stores})
    async with asyncio.timeout(20):
        answer: dict[str, Any] = await ws.receive_json()
        while answer["type"] in ("authenticated", "unsubscribed"):
            answer = await ws.receive_json()
    assert answer["type"] == "subscribed"
    stores_of: dict[str, Any] = answer["stores"]
    return stores_of


@asynccontextmanager
async def connected(
    port: int, token: str | None = None, path: str = "/ws", **options: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket to the server on `port`."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(
            f"http://127.0.0.1:{port}{path}", protocols=("solocron.v1",), headers=headers,
            max_msg_size=0, **options,
        ) as ws,
    ):  # fmt: skip
        yield ws
