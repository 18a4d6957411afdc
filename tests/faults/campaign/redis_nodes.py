"""The Redis of a campaign: one server, or three with three sentinels, each behind proxies.

Standalone: each worker has a proxy of its own, so one worker's link can fail alone. Sentinel: one
proxy before each node, whose port the node announces, so that whoever is told of a node by a
sentinel goes through the proxy.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from conftest import free_port, redis_binary
from proxy import Proxy

MASTER = "mymaster"
_START_S = 20.0
_ASK_S = 2.0


class Node:
    """A redis-server (or sentinel) process; its data are in `folder`."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.port = free_port()
        self._folder, self._args = folder, args
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *more: str) -> None:
        """Start it, and wait until it answers; does nothing when it runs."""
        if self._process is not None:
            return
        self._folder.mkdir(exist_ok=True)
        command = [redis_binary(), *self._args, "--port", str(self.port), *more]
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        async with asyncio.timeout(_START_S):
            while True:
                with suppress(RedisError, OSError, TimeoutError):
                    if await self.ask("PING"):
                        return
                await asyncio.sleep(0.02)

    async def kill(self, *, lose_data: bool = False) -> None:
        """SIGKILL it; with `lose_data`, also delete what it stored."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):  # it was told to shut down
                process.kill()
            await process.wait()
        if lose_data:
            for each in self._folder.glob("*.[ar]*"):  # appendonly.aof, dump.rdb
                each.unlink()

    def freeze(self) -> None:
        """SIGSTOP."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def ask(self, *command: str) -> Any:
        """The reply to one command, past any proxy. Raises RedisError, OSError or TimeoutError."""
        at_once = Retry(NoBackoff(), 0)
        async with (
            asyncio.timeout(_ASK_S),
            Redis(port=self.port, decode_responses=True, retry=at_once) as redis,
        ):
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


class RedisUnderTest(Protocol):
    """What the injector needs of either topology."""

    @property
    def nodes(self) -> Sequence[Node]: ...

    @property
    def proxies(self) -> Sequence[Proxy]:
        """Those that link faults are for: the workers', or the nodes'."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def restart(self, node: Node) -> None:
        """Start a killed node again."""
        ...

    async def heal(self) -> None:
        """Everything runs and carries again; returns when commands work."""
        ...

    def url(self, worker: int) -> str: ...

    async def master(self) -> Node: ...


class Standalone:
    """One server, with or without an append-only file."""

    def __init__(self, folder: Path, workers: int, *, durable: bool) -> None:
        append = "yes" if durable else "no"
        self.node = Node(folder / "redis", "--save", "", "--appendonly", append)
        self.nodes = [self.node]
        self.proxies = [Proxy(self.node.port) for _ in range(workers)]

    async def start(self) -> None:
        """The server, then the workers' proxies."""
        await self.node.start()
        for each in self.proxies:
            await each.up()

    async def stop(self) -> None:
        """End all."""
        for each in self.proxies:
            await each.down()
        await self.node.kill()

    async def heal(self) -> None:
        """See RedisUnderTest."""
        self.node.thaw()
        await self.node.start()

    async def restart(self, node: Node) -> None:
        """See RedisUnderTest."""
        await node.start()

    def url(self, worker: int) -> str:
        """Through the worker's own proxy."""
        return self.proxies[worker].redis_url

    async def master(self) -> Node:
        """The server."""
        return self.node


class SentinelSet:
    """Three nodes and three sentinels that watch them through the nodes' proxies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nodes: list[Node] = []
        for number in range(3):
            self.nodes.append(Node(folder / f"node{number}", "--save", "", "--appendonly", "yes",
                "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"))  # fmt: skip
        self.proxies = [Proxy(each.port) for each in self.nodes]
        self.sentinels = [Node(folder / f"sentinel{n}", "sentinel.conf", "--sentinel")
                          for n in range(3)]  # fmt: skip

    async def start(self) -> None:
        """The nodes, the first as master, then the sentinels; returns when these agree."""
        for each in self.proxies:
            await each.up()
        for number in range(3):
            await self._start_node(number)
        for number, sentinel in enumerate(self.sentinels):
            folder = self._folder / f"sentinel{number}"
            folder.mkdir()
            (folder / "sentinel.conf").write_text(
                f"sentinel monitor {MASTER} 127.0.0.1 {self.proxies[0].port} 2\n"
                f"sentinel down-after-milliseconds {MASTER} 1000\n"
                f"sentinel failover-timeout {MASTER} 3000\n"
                f"sentinel parallel-syncs {MASTER} 2\n"
            )
            await sentinel.start()
        await self._agreed()

    async def _start_node(self, number: int) -> None:
        """A node comes back as a replica of whoever is master; the sentinels correct it."""
        port = str(self.proxies[number].port)
        announce = ["--replica-announce-ip", "127.0.0.1", "--replica-announce-port", port]
        master = self.proxies[0].port
        with suppress(RedisError, OSError, TimeoutError, LookupError):
            master = await self._master_port()
        if master != self.proxies[number].port:
            announce += ["--replicaof", "127.0.0.1", str(master)]
        await self.nodes[number].start(*announce)

    async def stop(self) -> None:
        """End all."""
        for each in (*self.sentinels, *self.nodes):
            await each.kill()
        for proxy in self.proxies:
            await proxy.down()

    async def heal(self) -> None:
        """See RedisUnderTest."""
        for each in (*self.sentinels, *self.nodes):
            each.thaw()
        for number in range(3):
            await self._start_node(number)
        await self._agreed()

    async def restart(self, node: Node) -> None:
        """See RedisUnderTest."""
        await self._start_node(self.nodes.index(node))

    def url(self, worker: int) -> str:
        """The sentinels' addresses; the same for all workers."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{MASTER}"

    async def master(self) -> Node:
        """Whom the sentinels call master. Raises LookupError when none of them answers."""
        port = await self._master_port()
        return next(n for n, p in zip(self.nodes, self.proxies, strict=True) if p.port == port)

    async def _master_port(self) -> int:
        for sentinel in self.sentinels:
            with suppress(RedisError, OSError, TimeoutError):
                found = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
                if found:
                    return int(found[1])
        raise LookupError("no sentinel knows the master")

    async def _agreed(self) -> None:
        """Wait until all sentinels name one master, which says so itself and has its replicas."""
        async with asyncio.timeout(60):
            while not await self._is_agreed():
                await asyncio.sleep(0.1)

    async def _is_agreed(self) -> bool:
        with suppress(RedisError, OSError, TimeoutError, LookupError, StopIteration):
            asked = [s.ask("SENTINEL", "MASTER", MASTER) for s in self.sentinels]
            said = [_fields(reply) for reply in await asyncio.gather(*asked)]
            role = await (await self.master()).ask("ROLE")
            return (
                len({each["port"] for each in said}) == 1
                and all(each["num-other-sentinels"] == "2" for each in said)
                and all(each["flags"] == "master" for each in said)
                and role[0] == "master" and len(role[2]) == 2
            )  # fmt: skip
        return False


def _fields(reply: Any) -> dict[str, str]:
    """A sentinel's reply, which the library may have parsed already."""
    if isinstance(reply, dict):
        return {str(name): str(value) for name, value in reply.items()}
    return dict(zip(reply[::2], reply[1::2], strict=True))
