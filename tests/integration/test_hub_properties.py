"""The hub under any interleaving: every client's frames are a run without gap or repeat, and
complete once things have settled."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_world import SOON, STORES, Seat, World, notification
from solocron.notifications import hub as hub_module
from solocron.notifications.event import cloud_event

STEPS = (
    ("commit",) * 4 + ("deliver",) * 4 + ("deliver_in_order",) * 2
    + ("subscribe",) * 3 + ("race",) * 3
    + ("stranger", "unsubscribe", "cancel", "replace", "stall", "prune", "database", "redis")
    + ("turns",) * 2
)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, chunks and buffers so small that a few notifications fill them."""
    for name, value in {"_PAGE": 4, "_HELD_PER_STORE": 3, "CHUNK": 2, "_RETRY_S": 0.001,
                        "_DRAIN_POLL_S": 0.0001, "_DRAIN_S": 0.001,
                        "_PACE_BYTES": 300}.items():  # fmt: skip
        monkeypatch.setattr(hub_module, name, value)


@pytest.mark.usefixtures("small")
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 2**32),
    st.lists(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8), min_size=1, max_size=12),
)
def test_each_client_hears_a_gap_free_run_and_all_of_it(seed: int, acts: list[list[str]]) -> None:
    async def run() -> None:
        world = World(seed)
        hub = asyncio.create_task(world.hub.run())
        for steps in acts:
            for step in steps:
                await world.step(step)
            await world.settle()
            world.check()
        reads = world.table.reads
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.table.reads == reads, "the hub reads although nobody is behind"
        await world.leave()
        hub.cancel()
        await asyncio.gather(hub, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


async def looked(world: World) -> int:
    """How many reads it takes until the hub rests."""
    before = world.table.reads
    await world.settle()
    return world.table.reads - before


@pytest.mark.parametrize("strangers", [1, 50])
async def test_messages_the_table_does_not_have_cost_few_reads(strangers: int) -> None:
    world = World(0)
    hub = asyncio.create_task(world.hub.run())
    seat = world.seats[0]
    await world.hub.subscribe(seat.client, dict.fromkeys(STORES))
    await looked(world)
    for number in range(strangers):
        world.hub.deliver("a", SOON + number, b"{}")
    assert await looked(world) <= 6
    hub.cancel()
    await asyncio.gather(hub, return_exceptions=True)


async def test_an_idle_hub_without_redis_does_not_read_at_all() -> None:
    world = World(0)
    world.channels.is_up = False
    hub = asyncio.create_task(world.hub.run())
    await asyncio.sleep(0.05)
    assert world.table.reads == 0
    hub.cancel()
    await asyncio.gather(hub, return_exceptions=True)


async def test_a_reordered_frame_beside_a_stranger_is_not_lost() -> None:
    """A look that had begun before a row was committed says nothing of that row."""
    world = World(0)
    hub = asyncio.create_task(world.hub.run())
    seat = world.seats[0]
    seat.asked["a"].add(None)
    await world.hub.subscribe(seat.client, {"a": None})
    world.hub.deliver("a", SOON, b"{}")
    while not world.table.reading:
        await asyncio.sleep(0)
    for seq in (1, 2):
        world.table.head["a"] = seq
    for seq in (2, 1):
        world.hub.deliver("a", seq, cloud_event(notification("a", seq)))
    async with asyncio.timeout(5):
        while world.hub._behind or world.table.reading:
            await asyncio.sleep(0)
    world.check()
    hub.cancel()
    await asyncio.gather(hub, return_exceptions=True)


async def test_a_client_removed_while_it_subscribes_leaves_nothing() -> None:
    world = World(0)
    seat = world.seats[0]
    for turns in range(12):
        joining = asyncio.create_task(world.hub.subscribe(seat.client, {"a": 0, "b": None}))
        for _ in range(turns):
            await asyncio.sleep(0)
        await world.hub.remove(seat.client)
        await joining
        assert not world.hub._topics and not world.hub.clients and not world.channels.watched
        world.seats[0] = seat = Seat()


async def test_history_is_not_read_for_a_client_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    world = World(0)
    world.table.head["a"] = 4_000
    seat = Seat(max_pending=2_000)
    seat.peer.wire.stalled = True
    seat.asked["a"].add(0)
    await world.hub.subscribe(seat.client, {"a": 0})
    assert seat.client.is_closed
    assert world.table.reads < 20
    seat.check()


@pytest.mark.parametrize("last", [None, 0])
async def test_what_a_blip_loses_while_a_client_joins_is_looked_up(last: int | None) -> None:
    for turns in range(40):
        world = World(turns)
        world.loses = False
        hub = asyncio.create_task(world.hub.run())
        world.table.head["a"] = 1
        seat = world.seats[0]
        seat.asked["a"].add(last)
        seat.tasks.append(asyncio.create_task(world.hub.subscribe(seat.client, {"a": last})))
        for _ in range(turns):
            await asyncio.sleep(0)
        world.table.head["a"] = 2  # and its message is lost
        world.hub.resync()
        await world.settle()
        world.check()
        hub.cancel()
        await asyncio.gather(hub, return_exceptions=True)
