"""WebSocket clients that come and go: each resumes from its last seq at any worker."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType

from clients import Listener
from faults.campaign.check import Client

_STAY_S = (3.0, 15.0)
_PAUSE_S = (0.05, 0.3)
_CONNECT_S = 2.0


class _Ears(Listener):
    """Keeps the seqs alone: a long campaign sends many events."""

    def hear(self, text: str) -> dict[str, Any]:
        frame = super().hear(text)
        self.events.clear()
        return frame


class Watcher:
    """One client. `ports` says which workers serve at the moment; without `resume` it forgets, at
    each new connection, how far it had come."""

    def __init__(
        self, name: str, stores: Sequence[str], ports: Callable[[], Sequence[int]],
        luck: random.Random, *, resume: bool,
    ) -> None:  # fmt: skip
        self.name, self.stores = name, stores
        self._ports, self._luck, self._resume = ports, luck, resume
        self._ears = _Ears()
        self._ws: ClientWebSocketResponse | None = None
        self.connections = 0

    def facts(self) -> Client:
        """What it received."""
        unheard: dict[str, list[int]] = {each: [] for each in self.stores}
        refused = sum(
            not each["recovered"]
            for answer in self._ears.answers
            for each in answer.get("stores", {}).values()
        )
        return Client(self.name, unheard | self._ears.seqs, refused)

    def has(self, store: str, seq: int) -> bool:
        """Whether it has come that far in a store; true for one it does not watch."""
        return store not in self.stores or self._ears.last.get(store, 0) >= seq

    def cut(self) -> None:
        """Its connection is lost."""
        if self._ws is not None and (link := self._ws.get_extra_info("socket")) is not None:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    async def run(self) -> None:
        """Connect, listen for a while, go elsewhere; until cancelled."""
        while True:
            if ports := self._ports():
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    await self._session(self._luck.choice(ports))
            await asyncio.sleep(self._luck.uniform(*_PAUSE_S))

    async def _session(self, port: int) -> None:
        async with aiohttp.ClientSession() as http:
            async with asyncio.timeout(_CONNECT_S):
                self._ws = await http.ws_connect(
                    f"http://127.0.0.1:{port}/ws", protocols=("solocron.v1",), heartbeat=2.0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                )  # fmt: skip
            try:
                last: dict[str, int | None] = dict.fromkeys(self.stores)
                if self._resume or not self.connections:
                    last |= dict.fromkeys(self.stores, 0) | self._ears.last
                await self._ws.send_json({"type": "subscribe", "stores": last})
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._luck.uniform(*_STAY_S)):
                        await self._listen(self._ws)
            finally:
                ws, self._ws = self._ws, None
                await ws.close()

    async def _listen(self, ws: ClientWebSocketResponse) -> None:
        """Hear frames until the connection ends or the server says it cannot."""
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                return
            frame = self._ears.hear(message.data)
            if frame.get("type") == "error":
                return
            if frame.get("type") == "subscribed":
                self.connections += 1


def watchers(
    count: int, stores: Sequence[str], ports: Callable[[], Sequence[int]], seed: int, *,
    resume: bool,
) -> list[Watcher]:  # fmt: skip
    """Clients of overlapping halves of the stores, which come and go by `seed`."""
    made = []
    for number in range(count):
        luck = random.Random(f"client {number} of {seed}")
        mine = sorted(luck.sample(stores, len(stores) // 2))
        made.append(Watcher(f"client {number}", mine, ports, luck, resume=resume))
    return made
