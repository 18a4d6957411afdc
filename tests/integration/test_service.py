"""The service's life: however it is started, stopped, cancelled or broken, nothing is left."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from test_web import closed, token

from clients import connected, subscribe
from conftest import RedisServer
from solocron.cron.job import Job
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.service import Solocron
from solocron.settings import load
from workers import NEVER


@pytest.fixture
def make(environment: pytest.MonkeyPatch) -> Callable[[], Solocron]:
    for name in ("AUTO_CLOSE", "OPEN_REMINDER"):
        environment.setenv(f"SOLOCRON_STORE_{name}_SCHEDULE", NEVER)
    return lambda: Solocron(load())


def tasks() -> list[asyncio.Task[Any]]:
    return [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]


def links(redis: RedisServer) -> int:
    """Connections to Redis, redis-cli's own left out."""
    return len(redis.cli("CLIENT", "LIST").splitlines()) - 1


async def nothing_left(redis: RedisServer) -> None:
    async with asyncio.timeout(5):
        while tasks() or links(redis):
            await asyncio.sleep(0.01)


async def ready(cron: Solocron) -> None:
    async with asyncio.timeout(10):
        while not (await cron.readiness())[0] or not cron.parts.fanout.is_up:
            await asyncio.sleep(0.01)


def endless(cron: Solocron) -> asyncio.Event:
    """A job that runs each second, and until it is cancelled; the event says that it runs."""
    runs = asyncio.Event()

    async def body(run: Run) -> None:
        runs.set()
        await asyncio.Event().wait()

    cron.add(Job(name="endless", calendar=Calendar("* * * * * *"), body=body))
    return runs


async def test_starting_and_stopping_in_any_order(
    make: Callable[[], Solocron], redis_server: RedisServer
) -> None:
    cron = make()
    await cron.stop()
    await cron.drain()
    await cron.run_until(asyncio.Event())
    await asyncio.gather(cron.start(), cron.start())
    await cron.start()
    await ready(cron)
    await cron.drain()
    assert not (await cron.readiness())[0]
    await cron.drain()
    await asyncio.gather(cron.stop(), cron.stop())
    await cron.stop()
    await nothing_left(redis_server)
    await asyncio.gather(cron.start(), cron.stop())
    await nothing_left(redis_server)
    await cron.start()
    await ready(cron)
    await asyncio.gather(cron.stop(), cron.start())  # the start waits for the stop
    await ready(cron)
    await cron.stop()
    await nothing_left(redis_server)


async def test_a_service_started_again_serves_again(
    make: Callable[[], Solocron], redis_server: RedisServer
) -> None:
    cron = make()
    runs = endless(cron)
    for _ in range(2):
        async with cron.serving() as server:
            await ready(cron)
            async with aiohttp.ClientSession() as http:
                store = {"name": "Mitte", "timezone": "UTC", "hours": "24/7"}
                url = f"http://127.0.0.1:{server.port}/api/v1/stores/1"
                headers = {"Authorization": f"Bearer {token()}"}
                assert (await http.put(url, json=store, headers=headers)).ok
            async with connected(server.port, token()) as ws:
                await subscribe(ws, {"1": None})
            async with asyncio.timeout(5):
                await runs.wait()
            runs.clear()
            cron.settings.__dict__["grace"] = 0.0
    await nothing_left(redis_server)


@pytest.mark.parametrize("turns", [*range(12), 20, 40, 80])
async def test_a_start_cancelled_anywhere_leaves_nothing(
    make: Callable[[], Solocron], redis_server: RedisServer, turns: int
) -> None:
    cron = make()

    async def live() -> None:
        async with cron:
            await asyncio.Event().wait()

    living = asyncio.create_task(live())
    for _ in range(turns):
        await asyncio.sleep(0)
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    assert living.cancelled()
    await nothing_left(redis_server)


async def test_a_stop_cancelled_hands_over_at_once(
    make: Callable[[], Solocron], redis_server: RedisServer
) -> None:
    cron = make()
    runs = endless(cron)
    await cron.start()
    async with asyncio.timeout(5):
        await runs.wait()
    stopping = asyncio.create_task(cron.stop())
    await asyncio.sleep(0.05)
    began = time.monotonic()
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert time.monotonic() - began < 3
    await nothing_left(redis_server)
    assert redis_server.cli("KEYS", "cron:*") == ""


async def test_a_server_cancelled_while_it_stops_leaves_nothing(
    make: Callable[[], Solocron], redis_server: RedisServer
) -> None:
    cron = make()
    runs = endless(cron)
    leave = asyncio.Event()

    async def serve() -> None:
        async with cron.serving():
            await leave.wait()

    serving = asyncio.create_task(serve())
    async with asyncio.timeout(5):
        await runs.wait()
    leave.set()
    await asyncio.sleep(0.05)
    began = time.monotonic()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert serving.cancelled() and time.monotonic() - began < 3
    await nothing_left(redis_server)
    assert redis_server.cli("KEYS", "cron:*") == ""


@pytest.mark.parametrize("part", ["hub", "relay", "fanout"])
async def test_a_part_that_breaks_is_told_and_leaves_nothing(
    make: Callable[[], Solocron], redis_server: RedisServer, part: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    cron = make()
    runs, broken = endless(cron), asyncio.Event()

    async def run(*args: Any) -> None:
        await broken.wait()
        raise KeyError("a fault of ours")

    monkeypatch.setattr(getattr(cron.parts, part), "run", run)
    with pytest.raises(ExceptionGroup) as caught:
        async with cron:
            await runs.wait()
            assert (await cron.readiness())[0]
            broken.set()
            try:
                await cron.run_until(asyncio.Event())
            finally:
                assert not (await cron.readiness())[0]
    assert caught.group_contains(KeyError)
    assert "a part of it broke" in caplog.text
    assert not (await cron.readiness())[0]
    await nothing_left(redis_server)
    assert redis_server.cli("KEYS", "cron:*") == ""
    await cron.stop()


async def test_a_broken_service_is_not_started_twice_in_silence(
    make: Callable[[], Solocron], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cron = make()

    async def run() -> None:
        raise KeyError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(cron.parts.hub, "run", run)
        await cron.start()
        with pytest.raises(ExceptionGroup):
            await cron.run_until(asyncio.Event())
        assert not (await cron.readiness())[0]
        with pytest.raises(ExceptionGroup):
            await cron.start()
        with pytest.raises(ExceptionGroup):
            await cron.stop()
    await cron.start()
    await ready(cron)
    await cron.stop()
    await nothing_left(redis_server)


async def test_attached_it_lives_and_dies_with_the_hosts_application(
    make: Callable[[], Solocron], redis_server: RedisServer
) -> None:
    cron, app, order = make(), web.Application(), []

    async def host(app: web.Application) -> Any:
        order.append("host starts")
        yield
        order.append(f"host cleans up, service {'runs' if cron._background else 'is gone'}")

    async def shutdown(app: web.Application) -> None:
        order.append(f"host shuts down, {cron.parts.connections.open} sockets")

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    app.cleanup_ctx.append(host)
    cron.attach(app)
    app.on_shutdown.append(shutdown)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    await ready(cron)
    async with connected(runner.addresses[0][1], token()) as ws:
        async with asyncio.timeout(5):
            while not cron.parts.connections.open:
                await asyncio.sleep(0.01)
        cleaning = asyncio.create_task(runner.cleanup())
        assert (await closed(ws))[0] == 1001
        await cleaning
    assert order == ["host starts", "host shuts down, 0 sockets",
                     "host cleans up, service is gone"]  # fmt: skip
    await nothing_left(redis_server)
