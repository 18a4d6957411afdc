"""The benchmark of the WebSocket side, in small: it measures all it says, and counts what came."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.push import swarm as module
from benchmarks.push.measure import closing
from benchmarks.push.server_process import Server, running
from benchmarks.push.swarm import Plan, Swarm, SwarmError, allow_files
from benchmarks.push.world import frames, payloads

_ROWS = (
    "singles: deliveries/s", "singles: per s of server CPU", "singles: p99 ms",
    "bursts of 10: deliveries/s", "bursts of 10: per s of server CPU", "bursts of 10: p99 ms",
    "bytes per idle connection of 100", "100 clients resume: s to the last",
    "100 clients resume: connections/s", "p99 ms beside 1 % stalled",
)  # fmt: skip


async def start(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "benchmarks.push", *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip


async def bench(*args: str) -> tuple[int, str, str]:
    process = await start(*args)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.timeout(300)
async def test_a_small_run_measures_each_thing_and_compares_what_every_client_got() -> None:
    code, out, err = await bench("--clients=20", "--idle=100", "--passes=1", "--rounds=2")
    assert code == 0, err
    for row in _ROWS:
        assert row in out, out
    for aim in ("aim >= 2", "aim >= 5", "aim >= 0.9", "aim <= 1.25"):
        assert aim in out, out


async def test_ctrl_c_ends_every_process_it_started() -> None:
    process = await start("--clients=20", "--only=deliveries", "--passes=90000")
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


async def test_help_says_what_is_measured_and_a_wrong_number_what_to_give() -> None:
    code, out, _ = await bench("--help")
    assert code == 0 and "byte for byte" in out
    code, _, err = await bench("--clients=none")
    assert code == 2 and "give a whole number" in err


def sent(server: Server, swarm: Swarm, expected: bytes) -> None:
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
        sent(server, swarms(server.port), expected)


def test_too_few_files_are_told_with_the_remedy() -> None:
    with pytest.raises(SwarmError, match="ulimit -Hn 100000000200"):
        allow_files(100_000_000_000)


def test_messages_have_their_size() -> None:
    assert {len(each) for each in payloads(1, 3, 200)} == {200}
