"""Clients of a hub without a socket: what was written to them is read back as frames."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from clients import Listener
from solocron.notifications.client import Client, Turn


class Wire(asyncio.Transport):
    """Where a client's bytes go: `stalled` bytes are never taken by the peer."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.stalled = self.closing = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes)) if self.stalled else 0

    def is_closing(self) -> bool:
        return self.closing


class Peer:
    """A client of a hub, and what its other end heard."""

    def __init__(self, max_pending: int = 4_000_000, turn: Turn | None = None) -> None:
        self.wire = Wire()
        self.slow = asyncio.Event()
        self.client = Client(
            self.wire, turn or Turn(), on_slow=self.slow.set, max_pending=max_pending
        )

    @property
    def frames(self) -> Iterator[str]:
        """Every frame that was written, in order."""
        data = b"".join(self.wire.writes)
        while data:
            assert data[0] == 0x81  # a whole text frame, unmasked
            size, start = data[1], 2
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(data[2:start], "big")
            yield data[start : start + size].decode()
            data = data[start + size :]

    @property
    def heard(self) -> Listener:
        listener = Listener()
        for frame in self.frames:
            listener.hear(frame)
        return listener

    async def has(self, store: str, seqs: list[int]) -> None:
        """Wait until just these were heard of the store."""
        async with asyncio.timeout(10):
            while self.heard.seqs[store] != seqs:
                await asyncio.sleep(0.005)
