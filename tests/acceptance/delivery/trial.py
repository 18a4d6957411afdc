"""One trial: start everything, have notifications written while faults go on, let faults cease,
wait until every client has come to the table's heads, judge."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from acceptance.delivery import world
from acceptance.delivery.check import Facts, check
from acceptance.delivery.inject import Injector
from acceptance.delivery.parts import Crowd, Servers
from acceptance.delivery.plan import STORES, WORKERS, Fault, store_ids
from faults.campaign.campaign import keep_logs
from faults.campaign.check import Report
from faults.campaign.postgres import Postgres
from faults.campaign.redis_nodes import Node
from solocron.storage.engine import Database
from solocron.storage.feed import EVERY
from solocron.storage.outbox import Outbox
from workers import until

_POLL_S = 0.1
_STANDSTILL_S = 60.0


@dataclass(frozen=True)
class Options:
    """What a trial is to be. `settle_s`: how long clients may take to come to the end, in s."""

    seed: int
    clients: int
    notifications: int
    faults: Sequence[Fault]
    stores: int = STORES
    mutation: str = ""
    settle_s: float = 240
    keep: Path | None = None


@dataclass
class Progress:
    """How far a trial is; `look` is called after each change."""

    look: Callable[[Progress], None] = lambda _: None
    phase: str = "starting"
    written: int = 0
    taken: int = 0
    faults: list[str] = field(default_factory=list)


class Trial:
    """The parts of a trial while it runs, in a folder of its own."""

    def __init__(self, options: Options, folder: Path, progress: Progress) -> None:
        self._options, self._folder, self._progress = options, folder, progress
        self._written = asyncio.Condition()
        self._database: Database
        self._crowd: Crowd
        self._servers: Servers
        self._injector: Injector

    async def run(self) -> Report:
        """Run it, and say what came of it."""
        options = self._options
        async with AsyncExitStack() as stack:
            postgres = Postgres(self._folder)
            stack.push_async_callback(postgres.stop)
            await postgres.start()
            self._database = Database(postgres.url)
            stack.push_async_callback(self._database.close)
            await world.prepare(self._database, options.stores)
            redis = Node(self._folder / "redis", "--save", "", "--appendonly", "yes")
            stack.push_async_callback(redis.kill)
            await redis.start()
            self._crowd = await Crowd.start(options.seed, options.clients, options.stores)
            stack.push_async_callback(self._crowd.stop)
            self._servers = Servers(
                self._folder, self._crowd, redis=f"redis://127.0.0.1:{redis.port}/0",
                database=postgres.url, mutation=options.mutation, size=WORKERS,
            )  # fmt: skip
            stack.push_async_callback(self._servers.stop)
            await self._servers.start()
            self._injector = Injector(self._servers, redis, self._crowd)
            self._say("clients connect")
            await self._crowd.connected()
            facts = await self._judged()
        return check(facts)

    async def _judged(self) -> Facts:
        began = time.monotonic()
        await self._write()
        written_s = time.monotonic() - began
        self._say("no more faults: waiting for the clients that lag")
        ended = time.monotonic()
        heads = await Outbox(self._database).heads([EVERY, *store_ids(self._options.stores)])
        settled = await self._settle(heads)
        settled_s = time.monotonic() - ended if settled else None
        unpublished = await world.unpublished(self._database)
        clients = await self._crowd.report()
        self._say("comparing with the table")
        table = await world.read(self._database)
        return Facts(
            heads=heads, table=table.seqs, sums=table.sums, clients=clients,
            faults=self._injector.counts, unpublished=unpublished, errors=self._servers.errors(),
            written_s=written_s, settled_s=settled_s,
        )  # fmt: skip

    async def _write(self) -> None:
        """Have the servers write while faults are injected, until there are enough and the last
        fault is undone."""
        self._say("notifications are written while faults are injected")
        await world.remind(self._database, True)
        counting = asyncio.create_task(self._count())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._injector.run(self._options.faults, self._reach))
                group.create_task(self._reach(self._options.notifications))
        finally:
            counting.cancel()
        await world.remind(self._database, False)
        self._progress.written = await world.written(self._database)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            count = await world.written(self._database)
            async with self._written:
                self._progress.written = count
                self._written.notify_all()
            self._say()

    async def _reach(self, count: int) -> None:
        """Wait until so many are written. Raises TimeoutError when nothing is any more."""
        async with self._written:
            while (before := self._progress.written) < count:
                try:
                    async with asyncio.timeout(_STANDSTILL_S):
                        await self._written.wait_for(lambda: self._progress.written > before)
                except TimeoutError:
                    raise RuntimeError(
                        f"nothing was written for {_STANDSTILL_S:g} s, after {before}"
                    ) from None

    async def _settle(self, heads: dict[str, int]) -> bool:
        """Whether every client comes to the heads, and every row is published, in time."""
        await self._crowd.order(until=heads)

        async def published() -> bool:
            self._say()
            return not await world.unpublished(self._database)

        try:
            async with asyncio.timeout(self._options.settle_s):
                reached = self._crowd.said("reached", self._options.settle_s)
                _, all_have = await asyncio.gather(until(published, 1e9), reached)
                return all_have
        except TimeoutError:
            return False

    def _say(self, phase: str = "") -> None:
        progress = self._progress
        progress.phase = phase or progress.phase
        if progress.phase != "starting":
            progress.taken = self._crowd.taken
            progress.faults = [each.kind for each in self._injector.active]
        progress.look(progress)


async def run(options: Options, progress: Progress) -> Report:
    """Run a trial in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory(prefix="delivery-", ignore_cleanup_errors=True) as folder:
        try:
            return await Trial(options, Path(folder), progress).run()
        finally:
            if options.keep is not None:
                keep_logs(Path(folder), options.keep)
