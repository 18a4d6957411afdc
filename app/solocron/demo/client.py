"""The demo's WebSocket client: watches every store, and notes each `seq` it is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp

from solocron.demo.processes import Worker

_HEARTBEAT_S = 5.0
_PAUSE_S = 0.1


class Watcher:
    """Watches `stores` on one worker; when that one is gone it goes on at another, from the last
    seq of each store. `received` has every seq in the order of arrival."""

    def __init__(
        self,
        stores: Sequence[str],
        workers: Sequence[Worker],
        on_event: Callable[[Mapping[str, Any]], None],
        on_move: Callable[[Worker, Worker], None],
    ) -> None:
        self.received: dict[str, list[int]] = {each: [] for each in stores}
        self.worker: Worker | None = None
        self._workers = workers
        self._on_event = on_event
        self._on_move = on_move

    def last(self) -> dict[str, int]:
        """The newest seq received of each store; 0 for none."""
        return {each: seqs[-1] if seqs else 0 for each, seqs in self.received.items()}

    async def run(self) -> None:
        """Watch until no worker is left to watch on."""
        async with aiohttp.ClientSession() as session:
            while alive := [each for each in self._workers if each.is_alive]:
                worker = next((each for each in alive if each is not self.worker), alive[0])
                if self.worker is not None:
                    self._on_move(self.worker, worker)
                self.worker = worker
                with suppress(aiohttp.ClientError, OSError):
                    await self._watch(session, worker)
                await asyncio.sleep(_PAUSE_S)

    async def _watch(self, session: aiohttp.ClientSession, worker: Worker) -> None:
        url = f"http://127.0.0.1:{worker.port}/ws"
        async with session.ws_connect(
            url, protocols=("solocron.v1",), heartbeat=_HEARTBEAT_S
        ) as ws:  # fmt: skip
            await ws.send_json({"type": "subscribe", "stores": self.last()})
            async for message in ws:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return
                frame = json.loads(message.data)
                if frame.get("type") == "error":
                    return
                if "specversion" in frame:
                    store_id, _, seq = frame["id"].rpartition(":")
                    self.received[store_id].append(int(seq))
                    self._on_event(frame)
