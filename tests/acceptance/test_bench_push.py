"""The benchmark of the WebSocket side, in small: it measures all it says, and counts what came."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from benches import bench, results, start
from benchmarks.common_process import Process
from benchmarks.push import swarm as module
from benchmarks.push.measure import closing, running
from benchmarks.push.swarm import Plan, Swarm, SwarmError, allow_files
from benchmarks.push.world import frames, payloads

_ROWS = (
    "singles: deliveries/s", "singles: per s of server CPU", "singles: p99 ms",
    "bursts of 10: deliveries/s", "bursts of 10: per s of server CPU", "bursts of 10: p99 ms",
    "bytes per idle connection of 100", "100 clients resume: s to the last",
    "100 clients resume: connections/s", "p99 ms beside 1 % stalled",
)  # fmt: skip


@pytest.mark.timeout(300)
async def test_a_small_run_measures_each_thing_and_compares_what_every_client_got(
    tmp_path: Path,
) -> None:
    ran = await bench(
        "push", "--clients=20", "--idle=100", "--passes=1", "--rounds=2", folder=tmp_path
    )
    assert ran.code == 0, ran.err
    for row in _ROWS:
        assert row in ran.out, ran.out
    for aim in ("aim >= 2", "aim >= 5", "aim >= 0.9", "aim <= 1.25"):
        assert aim in ran.out, ran.out
    document, text = results("push", tmp_path)
    assert "solocron" in text and "picows" in text
    assert (document["clients"], document["fewer"], document["idle"]) == (100, 10, 100)
    assert len(document["passes"]["10"]["solocron"]) == 1


async def test_ctrl_c_ends_every_process_it_started(tmp_path: Path) -> None:
    process = await start(
        "push", "--clients=20", "--only=deliveries", "--passes=90000", folder=tmp_path
    )
    async with asyncio.timeout(60):
        while len(served := servers(process.pid)) < 5:
            await asyncio.sleep(0.05)
    started = descendants(process.pid)
    assert set(served) < set(started)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130
    async with asyncio.timeout(20):
        while any(map(is_there, started)):
            await asyncio.sleep(0.05)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists()


def descendants(pid: int) -> list[int]:
    """The processes that this one started, and those that they did."""
    found = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return found + [each for child in found for each in descendants(child)]


def servers(pid: int) -> list[int]:
    """The benchmark's servers among them."""
    return [
        each for each in descendants(pid)
        if b"benchmarks.push.server" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]  # fmt: skip


async def test_help_says_what_is_measured_and_a_wrong_number_what_to_give(tmp_path: Path) -> None:
    ran = await bench("push", "--help", folder=tmp_path)
    assert ran.code == 0 and "byte for byte" in ran.out
    ran = await bench("push", "--clients=none", folder=tmp_path)
    assert ran.code == 2 and "give a whole number" in ran.err


def sent(server: Process, swarm: Swarm, expected: bytes) -> None:
    """Have three clients get message 1, and compare."""
    swarm.connect(Plan("", b"", b"") for _ in range(3))
    server.tell("send", 1, 1, 200)
    swarm.gather(expected)


@pytest.mark.parametrize(
    ("first", "count", "flaw"), [(2, 1, "a client got"), (1, 2, "3 of 3 clients did not get all")]
)
def test_a_wrong_or_missing_message_is_an_error(
    first: int, count: int, flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SILENCE_S", 1.0)
    expected = frames(payloads(first, count, 200))
    with (
        running("aiohttp", {}) as server,
        closing() as swarms,
        pytest.raises(SwarmError, match=flaw),
    ):
        sent(server, swarms(server.said), expected)


def test_too_few_files_are_told_with_the_remedy() -> None:
    with pytest.raises(SwarmError, match="ulimit -Hn 100000000200"):
        allow_files(100_000_000_000)


def test_messages_have_their_size() -> None:
    assert {len(each) for each in payloads(1, 3, 200)} == {200}
