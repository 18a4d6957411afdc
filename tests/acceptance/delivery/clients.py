"""A process of clients; it says how they are as JSON lines on stdout.

The only argument is a JSON object: `seed`, `clients`, `stores` (see `plan.crowd`), and of them
those numbered `part`, `part + parts`, ... Orders come as JSON lines on stdin: `ports` are the
servers there are, `cut` has one third of the clients lose their connection, `until` names the heads
they are to come to, and `report` wants all that they were sent. When stdin ends it stops.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import uvloop

from acceptance.delivery.plan import crowd
from acceptance.delivery.watchers import Servers, Watcher, watcher
from worker import say

_SAY_S = 0.5
_POLL_S = 0.1


async def told(watchers: Sequence[Watcher]) -> None:
    """Say now and then how many notifications there were, and once that all have connected."""
    connected = False
    while True:
        await asyncio.sleep(_SAY_S)
        taken = sum(each.record.counts["taken"] for each in watchers)
        say(event="progress", taken=taken)
        if not connected and all(each.record.counts["connections"] for each in watchers):
            connected = True
            say(event="connected")


async def reached(watchers: Sequence[Watcher], heads: dict[str, int]) -> None:
    """Say it when all have come there."""
    behind = list(watchers)
    while behind := [each for each in behind if not each.record.has(heads)]:
        await asyncio.sleep(_POLL_S)
    say(event="reached")


async def obey(watchers: Mapping[int, Watcher], servers: Servers) -> None:
    """Follow the orders on stdin, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with asyncio.TaskGroup() as group:
        waiting: list[asyncio.Task[None]] = []
        async for line in reader:
            match json.loads(line):
                case {"ports": ports}:
                    servers.are(ports)
                case {"cut": third}:
                    for number, each in watchers.items():
                        if number % 3 == third:
                            each.cut()
                case {"until": heads}:
                    waiting.append(group.create_task(reached(list(watchers.values()), heads)))
                case {"report": True}:
                    for each in watchers.values():
                        say(event="client", name=each.name, **each.record.shown())
                    say(event="reported")
        for task in waiting:
            task.cancel()


async def main(options: dict[str, Any]) -> None:
    seed, part, parts = options["seed"], options["part"], options["parts"]
    seats = list(enumerate(crowd(seed, options["clients"], options["stores"])))[part::parts]
    servers = Servers()
    no_limit = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15)
    async with aiohttp.ClientSession(connector=no_limit, timeout=timeout) as http:
        watchers = {n: watcher(seat, servers, seed, http) for n, seat in seats}
        tasks = [asyncio.create_task(each.run(), name=each.name) for each in watchers.values()]
        tasks.append(asyncio.create_task(told(list(watchers.values()))))
        try:
            obeying = asyncio.create_task(obey(watchers, servers))
            done, _ = await asyncio.wait([obeying, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()  # a client's own mistake is shown, and ends it all
        finally:
            for each in tasks:
                each.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    uvloop.run(main(json.loads(sys.argv[1])))
