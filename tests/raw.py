"""A WebSocket client on a bare socket: it reads as slowly as a test wants, and sees each frame."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import dataclass

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


@dataclass(frozen=True)
class Frame:
    """One frame of the server. `first` is its first byte: FIN, RSV and opcode."""

    first: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F

    @property
    def code(self) -> int:
        """The code of a close frame."""
        return int.from_bytes(self.payload[:2], "big")


class RawClient:
    """Connected to `/ws`; its kernel takes few bytes before the server has to wait."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._data = b""
        self.head = ""

    @classmethod
    async def connect(cls, port: int, *headers: str, path: str = "/ws") -> RawClient:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket",
                 "Connection: Upgrade", "Sec-WebSocket-Version: 13",
                 "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *headers]  # fmt: skip
        await loop.sock_sendall(connection, ("\r\n".join(lines) + "\r\n\r\n").encode())
        client = cls(connection)
        while b"\r\n\r\n" not in client._data:
            assert await client._more()
        head, _, client._data = client._data.partition(b"\r\n\r\n")
        client.head = head.decode()
        return client

    async def send(self, opcode: int, payload: bytes = b"") -> None:
        """One masked frame."""
        size = len(payload)
        length = struct.pack("!B", 0x80 | size) if size < 126 else struct.pack("!BH", 0xFE, size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        frame = bytes((0x80 | opcode,)) + length + mask + masked
        await asyncio.get_running_loop().sock_sendall(self._socket, frame)

    async def _more(self, size: int = 65536) -> bool:
        data = await asyncio.get_running_loop().sock_recv(self._socket, size)
        self._data += data
        return bool(data)

    async def frame(self, pause_s: float = 0) -> Frame | None:
        """The next frame; None at the end. Rests `pause_s` before it takes another 64 KiB."""
        while (found := self._parse()) is None:
            await asyncio.sleep(pause_s)
            if not await self._more():
                return None
        return found

    def _parse(self) -> Frame | None:
        data = self._data
        if len(data) < 2:
            return None
        assert not data[1] & 0x80, "a server's frame is not masked"
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start or len(data) < start + size:
            return None
        self._data = data[start + size :]
        return Frame(data[0], data[start : start + size])

    async def until_close(self, pause_s: float = 0) -> list[Frame]:
        """All frames up to the close frame, which is answered."""
        frames: list[Frame] = []
        while (frame := await self.frame(pause_s)) is not None:
            frames.append(frame)
            if frame.opcode == CLOSE:
                await self.send(CLOSE, frame.payload[:2])
                assert await self.frame() is None, "frames after the close frame"
                break
        return frames

    async def rest(self) -> list[Frame]:
        """All whole frames up to the end of the connection."""
        frames: list[Frame] = []
        while (frame := await self.frame()) is not None:
            frames.append(frame)
        return frames

    def close(self) -> None:
        self._socket.close()
