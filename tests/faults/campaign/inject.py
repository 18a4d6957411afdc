"""How each kind of fault is injected, and undone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from redis.exceptions import RedisError

from faults.campaign.fleet import Fleet, Member
from faults.campaign.plan import Fault
from faults.campaign.postgres import Postgres
from faults.campaign.redis_nodes import Node, RedisUnderTest, SentinelSet
from faults.campaign.watchers import Watcher
from proxy import Proxy

_UNREACHABLE = (RedisError, OSError, TimeoutError, LookupError)


class Injector:
    """Injects faults into the parts of a campaign. Two faults of one target wait for each other.

    `counts`: how often each kind was injected; `active`: those under way.
    """

    def __init__(
        self, fleet: Fleet, redis: RedisUnderTest, postgres: Postgres, clients: Sequence[Watcher]
    ) -> None:
        self._fleet, self._redis, self._postgres = fleet, redis, postgres
        self._clients = clients
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.counts: Counter[str] = Counter()
        self.active: list[Fault] = []

    async def run(self, faults: Iterable[Fault]) -> None:
        """Inject each at its time; returns when the last one is undone."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, start + fault.at_s - time.monotonic()))
                group.create_task(self._inject(fault), name=str(fault))

    async def _inject(self, fault: Fault) -> None:
        async with AsyncExitStack() as stack:
            for target in sorted(self._targets(fault)):
                await stack.enter_async_context(self._turns[target])
            self.active.append(fault)
            try:
                name = fault.kind.replace("-", "_")
                if await getattr(self, f"_{name}", self._on_link)(fault) is not False:
                    self.counts[fault.kind] += 1
            finally:
                self.active.remove(fault)

    def _targets(self, fault: Fault) -> list[str]:
        workers = [f"worker {n}" for n in range(self._fleet.size)]
        part, _, what = fault.kind.partition("-")
        if fault.kind == "deploy" or part == "owner":
            return workers
        if fault.kind in ("zombie", "database-hang"):
            links = [f"{kind} link {n}" for n in range(self._fleet.size)
                     for kind in ("redis", "database")]  # fmt: skip
            return [*workers, *links]
        if part in ("worker", "sentinel"):
            return [f"{part} {fault.target}"]
        if what in ("cut", "down", "delay", "half-open", "silent"):
            return [f"{part} link {fault.target}"]
        return ["database" if part == "database" else "clients" if part == "client" else "redis"]

    # -- workers and clients ---------------------------------------------------------------

    def _member(self, fault: Fault) -> Member:
        return self._fleet.members[fault.target]

    async def _worker_kill(self, fault: Fault) -> None:
        await self._member(fault).kill()
        await asyncio.sleep(fault.for_s)
        await self._fleet.start_one(fault.target)

    async def _worker_freeze(self, fault: Fault) -> None:
        self._member(fault).signal(signal.SIGSTOP)
        await asyncio.sleep(fault.for_s)
        self._member(fault).signal(signal.SIGCONT)

    async def _owner_kill(self, fault: Fault) -> None:
        await self._worker_kill(await self._aimed(fault))

    async def _owner_freeze(self, fault: Fault) -> None:
        await self._worker_freeze(await self._aimed(fault))

    async def _aimed(self, fault: Fault) -> Fault:
        """The fault, aimed at the next worker that begins a tick, somewhere in its body."""
        since = len(self._fleet.begins)
        await self._fleet.saw(lambda: len(self._fleet.begins) > since, 5)
        await asyncio.sleep(fault.size / 1000)
        return replace(fault, target=self._newest_owner())

    async def _worker_clock(self, fault: Fault) -> None:
        await self._member(fault).order(step_ms=fault.size)
        await asyncio.sleep(fault.for_s)
        await self._member(fault).order(step_ms=-fault.size)

    _worker_hour = _worker_clock

    async def _deploy(self, fault: Fault) -> None:
        for number in range(self._fleet.size):
            await self._fleet.members[number].stop()
            await self._fleet.start_one(number)

    async def _client_cut(self, fault: Fault) -> None:
        for each in self._clients[fault.target % 3 :: 3]:
            each.cut()

    # -- links -----------------------------------------------------------------------------

    async def _on_link(self, fault: Fault) -> None:
        part, _, what = fault.kind.partition("-")
        links = self._fleet.links if part == "database" else self._redis.proxies
        await _disturb(links[fault.target], what, fault)

    async def _database_hang(self, fault: Fault) -> None:
        fault = await self._aimed(fault)
        await _disturb(self._fleet.links[fault.target], "half-open", fault)

    # -- servers ---------------------------------------------------------------------------

    async def _database_fast(self, fault: Fault) -> None:
        await self._postgres.down("fast")
        await asyncio.sleep(fault.for_s)
        await self._postgres.up()

    async def _database_crash(self, fault: Fault) -> None:
        await self._postgres.down("immediate")
        await asyncio.sleep(fault.for_s)
        await self._postgres.up()

    async def _tell_master(self, *command: str) -> bool:
        """Whether the master took the command; it may be away by another fault."""
        with suppress(*_UNREACHABLE):
            await (await self._redis.master()).ask(*command)
            return True
        return False

    async def _flushall(self, fault: Fault) -> bool:
        return await self._tell_master("FLUSHALL")

    async def _script_flush(self, fault: Fault) -> bool:
        return await self._tell_master("SCRIPT", "FLUSH")

    async def _redis_drop_links(self, fault: Fault) -> bool:
        killed = await self._tell_master("CLIENT", "KILL", "TYPE", "normal")
        return killed and await self._tell_master("CLIENT", "KILL", "TYPE", "pubsub")

    async def _redis_freeze(self, fault: Fault) -> bool:
        node = await self._master()
        if node is None:
            return False
        node.freeze()
        await asyncio.sleep(fault.for_s)
        node.thaw()
        return True

    async def _redis_restart(self, fault: Fault) -> bool:
        node = await self._master()
        if node is None:
            return False
        await self._restart([node], fault.for_s, lose_data=False)
        return True

    async def _redis_lose_data(self, fault: Fault) -> None:
        await self._restart(self._redis.nodes, fault.for_s, lose_data=True)

    async def _redis_all_down(self, fault: Fault) -> None:
        await self._restart(self._redis.nodes, fault.for_s, lose_data=False)

    async def _restart(self, nodes: Sequence[Node], after_s: float, *, lose_data: bool) -> None:
        for node in nodes:
            await node.kill(lose_data=lose_data)
        await asyncio.sleep(after_s)
        for node in nodes:
            await self._redis.restart(node)

    async def _master(self) -> Node | None:
        with suppress(*_UNREACHABLE):
            return await self._redis.master()
        return None

    # -- sentinels -------------------------------------------------------------------------

    def _sentinels(self) -> Sequence[Node]:
        assert isinstance(self._redis, SentinelSet)
        return self._redis.sentinels

    async def _failover(self, fault: Fault) -> bool:
        for sentinel in self._sentinels():
            with suppress(*_UNREACHABLE):
                await sentinel.ask("SENTINEL", "FAILOVER", "mymaster")
                return True
        return False  # no sentinel would: another failover is under way

    async def _sentinel_freeze(self, fault: Fault) -> None:
        sentinel = self._sentinels()[fault.target]
        sentinel.freeze()
        await asyncio.sleep(fault.for_s)
        sentinel.thaw()

    # -- the zombie ------------------------------------------------------------------------

    async def _zombie(self, fault: Fault) -> bool:
        """An owner that is passed, does not know it, and writes.

        It is held in its body while it cannot reach the database to extend its lease there; its
        Redis renews it all the while. The others cannot reach Redis, so they go by the ledger and
        take the run over. Then its database is back, and it is let go.
        """
        fleet = self._fleet
        number = self._newest_owner()
        member, link = fleet.members[number], fleet.links[number]
        others = [self._redis.proxies[n] for n in range(fleet.size) if n != number]
        since = len(fleet.begins)
        await member.order(hold=True)

        def held() -> tuple[int, int]:
            mine = [each for each in fleet.begins[since:] if each.worker == member.name]
            return (mine[-1].tick, mine[-1].attempt) if mine else (0, 0)

        def passed() -> bool:
            return any(tick == run[0] and attempt > run[1] for tick, attempt in fleet.writes)

        try:
            await fleet.saw(lambda: held()[0], fault.for_s / 2)
            run = held()
            await asyncio.gather(link.down(), *(each.down() for each in others))
            return bool(run[0] and await fleet.saw(passed, fault.for_s))
        finally:
            await link.up()
            await member.order(hold=False)
            await asyncio.gather(*(each.up() for each in others))

    def _newest_owner(self) -> int:
        names = {each.name: number for number, each in self._fleet.members.items()}
        for begin in reversed(self._fleet.begins):
            if begin.worker in names:
                return names[begin.worker]
        return 0


async def _disturb(link: Proxy, what: str, fault: Fault) -> None:
    """Something happens to a link, and is undone."""
    if what == "cut":
        await link.cut()
        return
    if what == "down":
        await link.down()
        await asyncio.sleep(fault.for_s)
        await link.up()
        return
    if what == "delay":
        link.delay_s = fault.size
    elif what == "half-open":
        link.swallow("requests", "replies")
    elif what == "silent":
        link.swallow("replies")
    await asyncio.sleep(fault.for_s)
    await link.mend()
