"""One campaign: start everything, inject, heal, wait until all is done, judge, end everything."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from faults.campaign import mutations, world
from faults.campaign.check import Facts, Report, check
from faults.campaign.fleet import SKEWS_MS, Fleet
from faults.campaign.inject import Injector
from faults.campaign.plan import SENTINEL, Fault
from faults.campaign.postgres import Postgres
from faults.campaign.redis_nodes import RedisUnderTest, SentinelSet, Standalone
from faults.campaign.watchers import Watcher, watchers
from solocron.storage.engine import Database
from workers import wall_ms

_PROGRESS_S = 3.0
_POLL_S = 0.2
_FIRST_TICK_S = 30.0


@dataclass(frozen=True)
class Options:
    """What a campaign is to be. Times in s and ms by name."""

    seed: int
    topology: str
    faults: Sequence[Fault]
    seconds: float
    mutation: str = ""
    workers: int = 4
    clients: int = 20
    body_ms: float = 8
    settle_s: float = 60
    keep: Path | None = None


@dataclass(frozen=True)
class Result:
    """What came of it. `settled_s`: how long after the last fault all was done (None: it was not,
    or the campaign was interrupted)."""

    report: Report
    settled_s: float | None
    interrupted: bool = False

    @property
    def is_green(self) -> bool:
        """Whether all was done in time and nothing was doubled or lost."""
        return self.report.is_green and self.settled_s is not None


class Campaign:
    """The parts of a campaign while it runs; `say` gets a line of progress every few seconds."""

    def __init__(self, options: Options, folder: Path, say: Callable[[str], None]) -> None:
        self._options, self._folder, self._say = options, folder, say
        self._postgres = Postgres(folder)
        self._redis: RedisUnderTest
        if options.topology == SENTINEL:
            self._redis = SentinelSet(folder)
        else:
            durable = random.Random(options.seed).random() < 0.5
            self._redis = Standalone(folder, options.workers, durable=durable)
        self._anchor_ms = 0.0
        self._first = world.EPOCH  # the window begins when all are up and a tick has run
        self._started = time.monotonic()

    async def run(self) -> Result:
        """Run it; cancelled, it still says what was seen."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._postgres.stop)
            await self._postgres.start()
            database = Database(self._postgres.url)
            stack.push_async_callback(database.close)
            await world.prepare(database)
            stack.push_async_callback(self._redis.stop)
            await self._redis.start()
            fleet = self._new_fleet()
            stack.push_async_callback(fleet.stop)
            await fleet.start()
            # A new job owes no tick before the first one that ran, and every one after it.
            if not await fleet.saw(lambda: fleet.writes, _FIRST_TICK_S):
                raise RuntimeError("no tick ran although nothing failed yet")
            self._first = max(tick for tick, _ in fleet.writes) + world.STEP_MS
            return await self._run(database, fleet)

    def _new_fleet(self) -> Fleet:
        options = self._options
        self._anchor_ms = wall_ms()
        return Fleet(
            self._folder, redis=self._redis.url, database=self._postgres.url,
            size=options.workers, anchor_ms=self._anchor_ms, mutation=options.mutation,
            body_ms=options.body_ms,
        )  # fmt: skip

    async def _run(self, database: Database, fleet: Fleet) -> Result:
        options = self._options
        resume = options.mutation != mutations.NO_RESUME
        clients = watchers(
            options.clients, world.ALL, lambda: fleet.ports, options.seed, resume=resume
        )
        injector = Injector(fleet, self._redis, self._postgres, clients)
        self._started = time.monotonic()
        tasks = [asyncio.create_task(each.run(), name=each.name) for each in clients]
        tasks.append(asyncio.create_task(self._progress(fleet, injector, clients)))
        interrupted, settled, last = False, None, self._first
        try:
            await self._inject(injector)
            await self._heal(fleet)
            last = self._tick_now()
            settled = await self._settle(database, clients, last)
        except asyncio.CancelledError:
            _uncancel()
            interrupted, last = True, self._tick_now()
            await self._heal(fleet)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await fleet.stop()
        facts = await self._facts(database, fleet, injector, clients, last)
        return Result(check(facts), settled, interrupted)

    def _tick_now(self) -> int:
        """The tick that is due by now on a clock that is neither fast nor slow."""
        ticks = int((wall_ms() - self._anchor_ms) * world.RATE / world.STEP_MS)
        return world.EPOCH + ticks * world.STEP_MS

    def _due_ms(self, tick: int) -> float:
        """The real time at which a tick is due on the fastest clock."""
        return self._anchor_ms + (tick - world.EPOCH - max(SKEWS_MS)) / world.RATE

    async def _inject(self, injector: Injector) -> None:
        await injector.run(self._options.faults)
        left = self._started + self._options.seconds - time.monotonic()
        await asyncio.sleep(max(0.0, left))

    async def _heal(self, fleet: Fleet) -> None:
        """All servers run and all links carry, whatever a fault left undone."""
        await self._postgres.up()
        for link in (*fleet.links, *self._redis.proxies):
            await link.mend()
            await link.up()
        await self._redis.heal()

    async def _settle(
        self, database: Database, clients: Sequence[Watcher], last: int
    ) -> float | None:
        """Wait until every tick of the window is done and every client has everything: how many s
        that took, or None."""
        self._say(
            "        no more faults, all is healed: waiting for the ticks and clients that lag, "
            f"{self._options.settle_s:g} s at most"
        )
        began = time.monotonic()
        await world.halt(database)
        while time.monotonic() < began + self._options.settle_s:
            left = await world.backlog(database, self._first, last)
            has_all = all(
                client.has(store, seq) for client in clients for store, seq in left.counters.items()
            )
            if left.is_done and has_all:
                return time.monotonic() - began
            await asyncio.sleep(_POLL_S)
        return None

    async def _facts(
        self, database: Database, fleet: Fleet, injector: Injector,
        clients: Sequence[Watcher], last: int,
    ) -> Facts:  # fmt: skip
        tables, left = await world.read(database), await world.backlog(database, self._first, last)
        return Facts(
            first=self._first, last=last, rate=world.RATE, step=world.STEP_MS,
            anchor_ms=self._due_ms(self._first),
            ledger=tables.ledger, effects=tables.effects,
            begins=fleet.begins, told=tables.told, counters=left.counters, table=tables.table,
            clients=[each.facts() for each in clients], unpublished=left.unpublished,
            still_open=left.still_open, faults=injector.counts, forced_stops=fleet.forced,
        )  # fmt: skip

    async def _progress(self, fleet: Fleet, injector: Injector, clients: Sequence[Watcher]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            ticks = len({tick for tick, _ in fleet.writes})
            heard = sum(map(len, (seqs for c in clients for seqs in c.facts().received.values())))
            faults = ", ".join(f"{each.kind} #{each.target}" for each in injector.active) or "-"
            elapsed = time.monotonic() - self._started
            self._say(f"{elapsed:6.1f} s  {ticks:5} ticks  {heard:7} received  {faults}")


async def run(options: Options, say: Callable[[str], None]) -> Result:
    """Run a campaign in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        try:
            return await Campaign(options, Path(folder), say).run()
        finally:
            if options.keep is not None:
                keep_logs(Path(folder), options.keep)


def _uncancel() -> None:
    """The cancellation was taken note of: what follows runs to its end."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def keep_logs(folder: Path, keep: Path) -> None:
    """Copy the logs of all processes to `keep`."""
    keep.mkdir(parents=True, exist_ok=True)
    for log in (*folder.glob("*.log"), *folder.glob("*/log")):
        name = log.name if log.parent == folder else f"{log.parent.name}.log"
        shutil.copyfile(log, keep / name)
