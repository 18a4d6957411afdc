"""Four processes of one host, however they are made: each tick of its job is run once, also while
one of them is killed and another takes its place."""

from __future__ import annotations

import os
import signal
from itertools import pairwise

import pytest

from clients import connected, subscribe
from conftest import RedisServer
from hosting import (
    TOKEN,
    UVICORN,
    Kind,
    nothing_left,
    on_board,
    runs,
    settings,
    started,
    written_by,
)
from workers import until

GUNICORN = ("-W", "ignore", "-m", "gunicorn", "--bind", "127.0.0.1:PORT", "--no-control-socket",
            "--graceful-timeout", "5", "--workers", "4", "--worker-class")  # fmt: skip
FLEETS = {
    "uvicorn": Kind((*UVICORN, "--workers", "4", "fastapi_host:app"), leaves=1012),
    "gunicorn-uvicorn": Kind(
        (*GUNICORN, "uvicorn.workers.UvicornWorker", "fastapi_host:app"), leaves=1012
    ),
    # Its own worker waits for its clients without telling the application, and is killed for it.
    "gunicorn-asgi": Kind((*GUNICORN, "asgi", "fastapi_host:app"), leaves=1006),
}  # fmt: skip


@pytest.mark.parametrize("kind", FLEETS.values(), ids=FLEETS)
async def test_four_processes_run_each_tick_once_though_one_is_killed(
    kind: Kind, redis_server: RedisServer, postgres_url: str
) -> None:
    variables = await settings(redis_server, postgres_url)

    async def are_up(count: int, without: int = 0) -> None:
        async def there_are() -> bool:
            return len(on_board(redis_server) - {without}) >= count

        await until(there_are, 40)

    async def ran(count: int) -> None:
        async def so_many() -> bool:
            return len(await written_by(postgres_url)) >= count

        await until(so_many, 60)

    async with started(kind, variables) as host:
        await are_up(4)
        await ran(8)
        victim = int((await runs(postgres_url))[-1].owner.rpartition(":")[2])
        os.kill(victim, signal.SIGKILL)
        await are_up(4, without=victim)
        await ran(20)
        async with connected(host.port, TOKEN) as ws:
            await subscribe(ws, {"44": None})
            assert await host.stop(ws) == (kind.ends, kind.leaves)
    written, ledger = await written_by(postgres_url), await runs(postgres_url)
    assert len(written) == len(set(written)) >= 20
    assert {later - each for each, later in pairwise(written)} == {1000}
    assert {each.tick for each in ledger if each.state == "succeeded"} == set(written)
    begun_again = [each for each in ledger if each.attempt > 1]
    assert len(begun_again) <= 1  # what the killed one was at
    assert len({each.owner for each in ledger}) > 1
    killed = 2 if kind.leaves == 1006 else 1
    await nothing_left(redis_server, killed)
