"""A TCP proxy before a real server: a test can cut, delay or silence its links and lose a reply."""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url


class Proxy:
    """Listens on a port of its own and carries bytes to `upstream`: a port or a Unix socket. With
    `tls` it is a TLS server before it."""

    def __init__(self, upstream: int | str, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._doomed: bytes | None = None
        self._swallowed: frozenset[str] = frozenset()
        self.delay_s = 0.0  # of each piece, in either direction
        self.lost = 0
        self.port = 0

    @classmethod
    def to_postgres(cls, url: str) -> Proxy:
        """A proxy before the server of a `?host=<folder>` URL."""
        return cls(f"{make_url(url).query['host']}/.s.PGSQL.5432")

    def postgres_url(self, url: str) -> str:
        """The same database through this proxy."""
        parsed = make_url(url).set(host="127.0.0.1", port=self.port, query={})
        return parsed.render_as_string(hide_password=False)

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.down()

    async def up(self) -> None:
        """Listen (again, on the same port); does nothing while it does."""
        if self._server is not None:
            return
        self._server = await asyncio.start_server(
            self._carry, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuse connections and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """Cut every link; new ones are accepted."""
        links = list(self._links.items())
        for task, writer in links:
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in links), return_exceptions=True)

    def swallow(self, *directions: str) -> None:
        """Half-open: `requests`, `replies` or both no longer arrive, on links old and new; nobody
        is told. Until `mend`."""
        self._swallowed = frozenset(directions)

    async def mend(self) -> None:
        """Carry everything again, at once; links that lost bytes are cut."""
        self.delay_s, lossy, self._swallowed = 0.0, self._swallowed, frozenset()
        if lossy:
            await self.cut()

    def lose_reply_to(self, word: bytes) -> None:
        """Deliver the next request with `word` in it, swallow its reply and cut that link."""
        self._doomed = word

    async def _pass(
        self, direction: str, data: bytes, out: asyncio.StreamWriter, lost: set[str]
    ) -> None:
        """Carry a piece, unless this link `lost` one in that direction: the rest would be
        nonsense."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if direction in self._swallowed:
            lost.add(direction)
        if direction not in lost:
            out.write(data)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = writer
        server: asyncio.StreamWriter | None = None
        doomed, lost = asyncio.Event(), set[str]()

        async def requests(out: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                if self._doomed is not None and self._doomed in data:
                    self._doomed = None
                    doomed.set()
                await self._pass("requests", data, out, lost)
            out.close()

        try:
            if isinstance(self._upstream, int):
                answers, server = await asyncio.open_connection("127.0.0.1", self._upstream)
            else:
                answers, server = await asyncio.open_unix_connection(self._upstream)
            asking = asyncio.create_task(requests(server))
            try:
                while data := await answers.read(65536):
                    if doomed.is_set():
                        self.lost += 1
                        break
                    await self._pass("replies", data, writer, lost)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self._links[task]
            writer.transport.abort()
            if server is not None:
                server.transport.abort()
