"""Pub/sub links: what is watched is what Redis has subscribed, and no fault outlasts its bound."""

from __future__ import annotations

import ast
import asyncio
import random
import time
from pathlib import Path

import pytest

import solocron
from conftest import RedisServer
from proxy import Proxy
from sides import Side, subscribed, watched
from solocron.clock import SystemClock
from solocron.errors import ConfigError
from solocron.notifications.fanout import MAX_EVENT, Fanout
from solocron.storage.feed import EVERY


async def test_watching_unwatching_and_reconnecting_agree_with_redis(
    redis_server: RedisServer,
) -> None:
    rng = random.Random(5)
    async with Proxy(redis_server.port) as proxy, Side(proxy.redis_url).running() as side:
        stores = [f"s{number}" for number in range(8)]
        wanted: set[str] = set()
        for _ in range(25):
            calls = []
            for _ in range(rng.randrange(1, 8)):
                some = rng.sample(stores, rng.randrange(1, 4))
                if rng.random() < 0.5:
                    wanted.update(some)
                    calls.append(asyncio.create_task(side.fanout.watch(some)))
                else:
                    wanted.difference_update(some)
                    calls.append(asyncio.create_task(side.fanout.unwatch(some)))
                for _ in range(rng.choice((0, 0, 1, 5))):
                    await asyncio.sleep(0)
            if rng.random() < 0.3:
                await proxy.cut()
            await asyncio.gather(*calls)
            assert watched(side) == wanted
        await side.up()
        async with asyncio.timeout(5):
            while subscribed(redis_server) != wanted:
                await asyncio.sleep(0.02)


async def test_each_batch_nudges_the_other_servers_that_watch_all_stores(
    redis_server: RedisServer,
) -> None:
    async with (
        Side(redis_server.url).running() as one,
        Side(redis_server.url).running() as other,
        Side(redis_server.url).running() as idle,
    ):
        await asyncio.gather(one.up(), other.up(), idle.up())
        await asyncio.gather(*(side.fanout.watch([EVERY, "b"]) for side in (one, other)))
        for number in range(3):
            assert await one.fanout.publish([("a", number, b"{}")] * 10)
        assert await other.fanout.publish([("b", 1, b"{}")])
        await asyncio.gather(one.hears(("b", 1, b"{}")), other.hears(("b", 1, b"{}")))
        async with asyncio.timeout(5):
            while one.nudges < 1:
                await asyncio.sleep(0.005)
        assert (one.nudges, other.nudges, idle.nudges) == (1, 3, 0)


async def test_services_in_two_databases_of_one_redis_do_not_hear_each_other(
    redis_server: RedisServer,
) -> None:
    one, other = (Side(f"redis://127.0.0.1:{redis_server.port}/{number}") for number in (1, 2))
    async with one.running(), other.running():
        await asyncio.gather(one.up(), other.up())
        await asyncio.gather(*(side.fanout.watch(["a"]) for side in (one, other)))
        assert await one.fanout.publish([("a", 1, b"{}")])
        assert await other.fanout.publish([("a", 2, b"{}")])
        await asyncio.gather(one.hears(("a", 1, b"{}")), other.hears(("a", 2, b"{}")))
        assert (one.heard, other.heard) == ([("a", 1, b"{}")], [("a", 2, b"{}")])


async def test_watch_returns_when_messages_do_arrive(redis_server: RedisServer) -> None:
    async with Side(redis_server.url).running() as side:
        await side.up()
        for number in range(100):
            store = f"s{number}"
            await side.fanout.watch([store])
            assert await side.fanout.publish([(store, number, b"{}")])
        for number in range(100):
            await side.hears((f"s{number}", number, b"{}"))
        assert side.heard == [(f"s{number}", number, b"{}") for number in range(100)]


async def test_10_000_stores_in_pieces_and_messages_in_order(redis_server: RedisServer) -> None:
    async with Side(redis_server.url).running() as side:
        await side.up()
        stores = [f"s{number}" for number in range(10_000)]
        await side.fanout.watch(stores)
        messages = [(store, number, b"x" * 200) for number, store in enumerate(stores)]
        assert await side.fanout.publish(messages)
        await side.hears(messages[-1])
        assert side.heard == messages
        await side.fanout.unwatch(stores)
        await side.fanout.watch(["last"])  # answered behind all that was sent before
        assert subscribed(redis_server) == watched(side) == {"last"}


async def test_a_frozen_redis_is_found_out_and_found_again(own_redis: RedisServer) -> None:
    async with Side(own_redis.url, keepalive_s=0.3).running() as side:
        await side.up()
        await side.fanout.watch(["a"])
        own_redis.pause()
        began = time.monotonic()
        try:
            await side.up(False, within_s=2)
            assert time.monotonic() - began < 2 * 0.3 + 0.3
            assert not await side.fanout.publish([("a", 1, b"{}")])
        finally:
            own_redis.resume()
        await side.up()
        assert await side.fanout.publish([("a", 2, b"{}")])
        await side.hears(("a", 2, b"{}"))


class Hole(Proxy):
    """A proxy that can swallow all that Redis says, and keeps the link."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.swallows = False

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        write = writer.write
        writer.write = lambda data: None if self.swallows else write(data)  # type: ignore[method-assign] # the hole
        await super()._carry(reader, writer)


async def test_a_half_open_link_is_found_out(redis_server: RedisServer) -> None:
    async with (
        Hole(redis_server.port) as hole,
        Side(hole.redis_url, keepalive_s=0.3).running() as side,
    ):
        await side.up()
        hole.swallows = True
        began = time.monotonic()
        await side.up(False, within_s=2)
        assert time.monotonic() - began < 2 * 0.3 + 0.3
        hole.swallows = False
        await side.up()


async def test_a_redis_that_is_away_is_no_change_each_time_it_is_tried(
    own_redis: RedisServer,
) -> None:
    """Each change is a look at the whole table."""
    async with Side(own_redis.url).running() as side:
        await side.up()
        assert len(side.changed) == 1
        own_redis.stop()
        await side.up(False)
        await asyncio.sleep(1.5)  # several attempts
        assert len(side.changed) == 2
        own_redis.start()
        await side.up()
        assert len(side.changed) == 3


async def test_stopping_in_the_middle_of_publishing_ends_at_once(
    redis_server: RedisServer,
) -> None:
    messages = [(f"s{number}", number, b"x" * 500) for number in range(2_000)]
    rng = random.Random(1)
    for _ in range(60):
        side = Side(redis_server.url)
        async with side.running():
            publishing = asyncio.create_task(side.fanout.publish(messages))
            turns = asyncio.create_task(side.fanout.take_turn(1))
            await asyncio.sleep(rng.random() * 0.02)
            began = time.monotonic()
            publishing.cancel()
            turns.cancel()
            await asyncio.gather(publishing, turns, return_exceptions=True)
            assert publishing.cancelled() or publishing.result()
            assert time.monotonic() - began < 1
        assert time.monotonic() - began < 1
    async with asyncio.timeout(5):
        while len(redis_server.cli("CLIENT", "LIST").splitlines()) > 1:
            await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("frozen", [False, True])
async def test_stopping_at_any_moment_leaves_no_task_and_no_socket(
    own_redis: RedisServer, frozen: bool
) -> None:
    if frozen:
        own_redis.pause()
    try:
        for turns in (*range(25), 40, 80):
            side = Side(own_redis.url)
            began = time.monotonic()
            async with side.running():
                watching = asyncio.create_task(side.fanout.watch(["a", "b"]))
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.gather(watching, return_exceptions=True)
            assert time.monotonic() - began < 1
            assert len(asyncio.all_tasks()) == 1 and not side.fanout._subscriptions._links
    finally:
        own_redis.resume()
    async with asyncio.timeout(5):
        while len(own_redis.cli("CLIENT", "LIST").splitlines()) > 1:
            await asyncio.sleep(0.01)


async def test_a_reply_never_answers_another_question(redis_server: RedisServer) -> None:
    """A publish cut off at its deadline leaves no reply behind that the next command would take."""
    async with Hole(redis_server.port) as hole:
        side = Side(hole.redis_url)
        assert await side.fanout.take_turn(60_000)
        hole.swallows = True
        assert not await side.fanout.publish([("a", 1, b"{}")] * 10)
        hole.swallows = False
        assert not await side.fanout.take_turn(60_000)
        assert await side.fanout.take_turn(60_000, again=True)
        redis_server.cli("FLUSHALL")
        assert not await side.fanout.take_turn(60_000, again=True)
        assert await side.fanout.take_turn(60_000)
        await side.fanout.close()


async def test_messages_of_no_use_are_ignored_and_nothing_grows(redis_server: RedisServer) -> None:
    async with Side(redis_server.url).running() as side:
        await side.up()
        await side.fanout.watch(["a"])
        for bad in ("", "x", "1", "-1 {}", "9" * 19 + " {}", "1.5 {}", " {}"):
            redis_server.cli("PUBLISH", "solocron:notifications:a", bad)
        assert await side.fanout.publish([("a", 1, b"x" * (MAX_EVENT + 1)), ("a", 2, b"{}")])
        await side.hears(("a", 2, b"{}"))
        assert side.heard == [("a", 1, b""), ("a", 2, b"{}")]  # "1" has an empty event
        for _ in range(200):
            await side.fanout.watch(["b"])
            await side.fanout.unwatch(["b"])
        (link,) = side.fanout._subscriptions._links.values()
        assert watched(side) == {"a"} and len(link.channels) == len(link._channels[0]) == 1
        assert not link._markers


@pytest.mark.parametrize(
    "options", ["decode_responses=true", "socket_timeout=0.01", "protocol=3",
                "health_check_interval=1", "retry_on_timeout=true"],
)  # fmt: skip
async def test_options_in_the_url_do_not_break_the_reader(
    redis_server: RedisServer, options: str
) -> None:
    async with Side(f"{redis_server.url}?{options}").running() as side:
        await side.up()
        await side.fanout.watch(["a"])
        await asyncio.sleep(0.05)
        assert await side.fanout.publish([("a", 1, b"{}")])
        await side.hears(("a", 1, b"{}"))
        assert len(side.changed) == 1


def test_a_url_of_no_use_is_named() -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        Fanout("http://x", environment="", clock=SystemClock(), deadline_s=1)


def test_nothing_in_the_package_waits_with_wait_for() -> None:
    """On Python 3.11 it can swallow a cancellation, and it makes a task per call."""
    for path in Path(solocron.__file__).parent.rglob("*.py"):
        names = [each for each in ast.walk(ast.parse(path.read_text()))
                 if isinstance(each, ast.Attribute | ast.alias)]  # fmt: skip
        for each in names:
            name = each.attr if isinstance(each, ast.Attribute) else each.name
            assert name != "wait_for", f"{path}:{each.lineno}"
