"""Connections to the server that is the master now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from solocron.locks.address import Address, make_pool

_MAX_REPLY = 200


class Connector:
    """Opens connections to what `address` names: its one server, any of a cluster's nodes, or the
    master, asked of all sentinels anew each time. `deadline_s` bounds connecting, in s."""

    def __init__(self, address: Address, *, deadline_s: float) -> None:
        self._address = address
        self._deadline_s = deadline_s
        self._pools = [make_pool(url, deadline_s) for url in address.urls]
        self._data = make_pool(address.data_url, deadline_s) if address.data_url else None

    async def open(self) -> AbstractConnection:
        """A new connection, of its own, that the caller disconnects. Raises RedisError, OSError or
        TimeoutError."""
        if self._data is not None:
            return await self._open_master(self._data)
        for pool in list(self._pools):
            try:
                return await connect(pool)
            except (RedisError, OSError, TimeoutError):
                if len(self._pools) == 1:
                    raise
                self._pools.remove(pool)  # the others first, next time
                self._pools.append(pool)
        raise RedisConnectionError(f"none of {len(self._pools)} servers answers")

    async def _open_master(self, pool: ConnectionPool) -> AbstractConnection:
        host, port = await self._find_master()
        connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        connection.host, connection.port = host, port
        try:
            async with asyncio.timeout(self._deadline_s / 3):  # a hung one will soon be replaced
                await connection.connect()  # type: ignore[no-untyped-call]
                # Sentinels may name a server that is no master yet, or no more.
                role = (await _ask(connection, "ROLE"))[0]
            if role != b"master":
                raise RedisConnectionError(f"{host}:{port} is a {_text(role)}: a failover is on")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _find_master(self) -> tuple[str, int]:
        """What the sentinel with the newest configuration says: one that was cut off from the
        others may name the old master for long."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask_sentinel(each)) for each in self._pools]
        answers = [answer for each in asked if isinstance(answer := each.result(), tuple)]
        if not answers:
            raise RedisConnectionError(
                f"none of {len(asked)} sentinels knows a master {self._address.master!r}: "
                f"{asked[0].result()}"
            )
        _, host, port = max(answers)
        return host, port

    async def _ask_sentinel(self, pool: ConnectionPool) -> tuple[int, str, int] | str:
        """(configuration epoch, host, port) of the master; a text if this one cannot say."""
        name = self._address.master
        try:
            # In a failover the second knows of the new master before the first does.
            state, (host, port) = await ask_once(
                pool, self._deadline_s / 3,
                ("SENTINEL", "MASTER", name), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name),
            )  # fmt: skip
            epoch = state[state.index(b"config-epoch") + 1]
            return int(epoch), _text(host), int(port)
        except (RedisError, OSError, TimeoutError, TypeError, ValueError) as error:
            return str(error) or "no answer"


async def connect(pool: ConnectionPool) -> AbstractConnection:
    """A new connection of the pool's kind; the pool does not keep it."""
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


async def ask_once(pool: ConnectionPool, within_s: float, *commands: Sequence[str]) -> list[Any]:
    """The replies to a few commands, on a connection of their own. Raises RedisError, OSError or
    TimeoutError."""
    async with asyncio.timeout(within_s):
        connection = await connect(pool)
        try:
            return [await _ask(connection, *each) for each in commands]
        finally:
            await connection.disconnect(nowait=True)


async def _ask(connection: AbstractConnection, *command: str) -> Any:
    await connection.send_packed_command(b"".join(connection.pack_command(*command)))
    return await connection.read_response()


def _text(value: bytes) -> str:
    return value.decode(errors="replace")[:_MAX_REPLY]
