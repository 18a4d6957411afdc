"""An event stream's client on a bare socket: it sees each byte, and reads as slowly as a test
wants."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """What stood between two blank lines; a field that it had not is ''."""

    event: str = ""
    id: str = ""
    data: str = ""
    retry: str = ""
    comment: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def parse(text: str) -> Event:
    """The event of these lines, none of which may be one of another kind or come twice."""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(": ")
        assert colon and (name or "comment") not in fields, line
        fields[name or "comment"] = value
    return Event(**fields)


class StreamClient:
    """Connected to `/events`; `last_id` is what it would come back with. Its kernel takes few
    bytes before the server has to wait."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._data = b""
        self._body = b""
        self._last_chunk = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.last_id = ""
        self.is_whole = False  # whether the server ended the body, and did not cut it

    @classmethod
    async def connect(
        cls, port: int, query: str, *headers: str, auth: str | None = None, version: str = "1.1",
        method: str = "GET", behind: bytes = b"",
    ) -> StreamClient:  # fmt: skip
        """Send the request, and `behind` it in the same write, and read the answer's head."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        lines = [f"{method} /events{query} HTTP/{version}", f"Host: 127.0.0.1:{port}",
                 "Accept: text/event-stream", *headers]  # fmt: skip
        if auth is not None:
            lines.append(f"Authorization: Bearer {auth}")
        await loop.sock_sendall(connection, ("\r\n".join(lines) + "\r\n\r\n").encode() + behind)
        client = cls(connection)
        while b"\r\n\r\n" not in client._data:
            assert await client._more(), "no answer"
        head, _, client._data = client._data.partition(b"\r\n\r\n")
        status, *rest = head.decode().split("\r\n")
        client.status = int(status.split()[1])
        client.headers = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in rest)
        }
        return client

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _more(self) -> bool:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except ConnectionError:
            return False
        self._data += data
        return bool(data)

    async def problem(self) -> Any:
        """The body of an answer that is no stream."""
        while len(self._data) < int(self.headers["content-length"]):
            assert await self._more()
        assert self.headers["content-type"].startswith("application/problem+json")
        return json.loads(self._data)

    def _unchunk(self) -> None:
        """Move what is whole into the body: chunks, or all where there are none."""
        if self.headers.get("transfer-encoding") != "chunked":
            self._body, self._data = self._body + self._data, b""
            return
        while b"\r\n" in self._data and not self._last_chunk:
            size, _, rest = self._data.partition(b"\r\n")
            end = int(size, 16)
            if len(rest) < end + 2:
                return
            assert rest[end : end + 2] == b"\r\n"
            assert end == 0 or rest[:end].endswith(b"\n\n"), "a chunk that is no whole event"
            self._body, self._data = self._body + rest[:end], rest[end + 2 :]
            self._last_chunk = end == 0
        assert not (self._last_chunk and self._data), "bytes behind the last chunk"

    async def block(self, within_s: float = 10) -> Event | None:
        """The next event, comment or retry field; None at the end."""
        async with asyncio.timeout(within_s):
            while True:
                self._unchunk()
                if b"\n\n" in self._body:
                    break
                if not await self._more():
                    chunked = self.headers.get("transfer-encoding") == "chunked"
                    self.is_whole = self._last_chunk if chunked else not self._body
                    self.close()
                    return None
        text, _, self._body = self._body.partition(b"\n\n")
        event = parse(text.decode())
        self.last_id = event.id or self.last_id
        return event

    async def event(self, within_s: float = 10) -> Event:
        """The next one with data."""
        while (found := await self.block(within_s)) is not None:
            if found.data:
                return found
        raise AssertionError("the stream has ended")

    async def rest(self, within_s: float = 10) -> list[Event]:
        """All up to the end."""
        found = []
        while (each := await self.block(within_s)) is not None:
            found.append(each)
        return found

    def shut(self) -> None:
        """Send nothing more, and go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Close by a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()
