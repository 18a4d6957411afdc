"""Redis beyond one server, for real: Sentinel over three nodes, and a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from conftest import RedisServer, free_port

MASTER = "solocron-test"
_SLOTS = 16384
_BUS = 10_000  # nodes talk to each other on their port + 10,000


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> float:
    """Wait until a condition of servers is true; the monotonic time (s) at which it was seen."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
    return time.monotonic()


class Sentinels:
    """A master, two replicas and three sentinels, which fail over within about 2 s."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nodes = [RedisServer(self._home(f"node{n}")) for n in range(3)]
        self.sentinels: list[RedisServer] = []

    def _home(self, name: str) -> Path:
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    @property
    def url(self) -> str:
        """What a service is given: a user of its own, whom `isolate` does not part from a node."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://app:secret@{hosts}/{MASTER}"

    def sentinel_of(self, master: RedisServer, name: str, quorum: int) -> RedisServer:
        """One more sentinel, started, that watches `master`."""
        home = self._home(name)
        config = home / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {MASTER} 600\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
            f"sentinel parallel-syncs {MASTER} 2\n"
        )
        sentinel = RedisServer(home, str(config), "--sentinel")
        sentinel.start()
        return sentinel

    async def start(self) -> None:
        for node in self.nodes:
            node.start()
            node.cli("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
        for replica in self.nodes[1:]:
            replica.cli("REPLICAOF", "127.0.0.1", str(self.nodes[0].port))
        await until(lambda: all(_info(n, "master_link_status") == "up" for n in self.nodes[1:]))
        self.sentinels = [self.sentinel_of(self.nodes[0], f"sentinel{n}", 2) for n in range(3)]
        await until(lambda: all(self._sees_all(each) for each in self.sentinels))

    def _sees_all(self, sentinel: RedisServer) -> bool:
        reply = sentinel.cli("SENTINEL", "MASTER", MASTER).splitlines()
        state = dict(zip(reply[::2], reply[1::2], strict=False))
        return (state.get("num-slaves"), state.get("num-other-sentinels")) == ("2", "2")

    def masters(self, *besides: RedisServer) -> list[RedisServer]:
        """The nodes that say they are master, without those."""
        return [
            node for node in self.nodes if node not in besides and _info(node, "role") == "master"
        ]

    def isolate(self, master: RedisServer) -> None:
        """Part the master from the replicas and the sentinels: they are asked for a password."""
        master.cli("CONFIG", "SET", "requirepass", "nobody-has-it")
        client = ("--no-auth-warning", "-a", "nobody-has-it", "CLIENT")
        for line in master.cli(*client, "LIST").splitlines():
            fields = dict(part.split("=", 1) for part in line.split())
            if fields["name"].startswith("sentinel-") or "S" in fields["flags"]:
                master.cli(*client, "KILL", "ID", fields["id"])

    async def promoted(self, old: RedisServer) -> tuple[RedisServer, float]:
        """The new master, and when (monotonic s) it was seen to be one."""
        at = await until(lambda: bool(self.masters(old)))
        return self.masters(old)[0], at

    async def named(self, master: RedisServer) -> None:
        """Wait until every running sentinel names this master."""
        wanted = ["127.0.0.1", str(master.port)]
        ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        running = [each for each in self.sentinels if each.is_running]
        await until(lambda: all(each.cli(*ask).split() == wanted for each in running))

    def stop(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.stop()


class Cluster:
    """Three masters, the first of which has a replica that takes over within about 2 s; `more` are
    options of each node."""

    def __init__(self, folder: Path, *more: str, binary: str | None = None) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "800",
                   "--cluster-config-file", "nodes.conf",
                   "--cluster-require-full-coverage", "no", *more)  # fmt: skip
        self.nodes = []
        for n in range(4):
            home = folder / f"node{n}"
            home.mkdir(parents=True)
            self.nodes.append(RedisServer(home, *options, port=free_port(_BUS), binary=binary))

    @property
    def url(self) -> str:
        """What a service is given: two of the nodes know the others."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.nodes[:2])
        return f"redis+cluster://{hosts}"

    @property
    def replica(self) -> RedisServer:
        return self.nodes[3]

    async def start(self) -> None:
        for node in self.nodes:
            node.start()
        bounds = [0, _SLOTS // 3, 2 * _SLOTS // 3, _SLOTS]
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.cli("CLUSTER", "ADDSLOTS", *(str(slot) for slot in range(first, end)))
        for n, node in enumerate(self.nodes):
            node.cli("CLUSTER", "SET-CONFIG-EPOCH", str(n + 1))
        for node in self.nodes[1:]:
            node.cli("CLUSTER", "MEET", "127.0.0.1", str(self.nodes[0].port))
        await until(lambda: all(self._is_whole(each) for each in self.nodes))
        self.replica.cli("CLUSTER", "REPLICATE", self.id_of(self.nodes[0]))
        await until(lambda: _info(self.replica, "master_link_status") == "up")
        await until(lambda: all("slave" in each.cli("CLUSTER", "NODES") for each in self.nodes))

    def _is_whole(self, node: RedisServer) -> bool:
        info = node.cli("CLUSTER", "INFO")
        return "cluster_state:ok" in info and "cluster_known_nodes:4" in info

    def id_of(self, node: RedisServer) -> str:
        return node.cli("CLUSTER", "MYID")

    def key_on(self, node: RedisServer, name: str = "job") -> str:
        """A lock key whose slot that node has."""
        return next(
            key
            for key in (f"cron:{name}-{n}" for n in range(1000))
            if node.cli("EXISTS", key).isdigit()
        )

    def give(self, slot: str, target: RedisServer) -> None:
        """Tell all masters that the slot is `target`'s, which is told first: that it imported it
        gives its claim a newer epoch, or one of the old owner's that is under way would undo it."""
        other = next(each for each in self.nodes[:3] if each is not target)
        target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(other))
        for node in sorted(self.nodes[:3], key=lambda each: each is not target):
            node.cli("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    async def promoted(self) -> float:
        """When (monotonic s) the replica was seen to be a master."""
        return await until(lambda: _info(self.replica, "role") == "master")

    def stop(self) -> None:
        for server in self.nodes:
            server.stop()


def _info(server: RedisServer, field: str) -> str:
    lines = server.cli("INFO", "replication").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


_T = TypeVar("_T", Sentinels, Cluster)


@asynccontextmanager
async def running(topology: _T) -> AsyncIterator[_T]:
    """Start it, and stop all of it at the end."""
    try:
        await topology.start()
        yield topology
    finally:
        topology.stop()
