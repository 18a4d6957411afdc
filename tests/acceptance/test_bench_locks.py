"""The benchmark of the locks, in small: it measures all it says, and tells what it could not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches import bench, results
from benchmarks.locks.ways import NotTaken, cycles


async def test_a_small_run_measures_each_thing_and_lists_the_peers_that_are_missing(
    tmp_path: Path,
) -> None:
    ran = await bench("locks", "--quick", folder=tmp_path)
    assert ran.code == 0, ran.err
    for row in ("1 task: cycles/s", "8 tasks: cycles/s", "8 tasks: us of CPU a cycle"):
        assert row in ran.out, ran.out
    assert "x redis-py, aim >= 1.2" in ran.out
    for peer in ("pottery", "aioredlock", "coredis"):
        assert f"{peer}: not measured" in ran.out and "make peers-locks" in ran.out
    document, text = results("locks", tmp_path)
    assert "solocron" in text and "redis-py" in text
    assert set(document["rounds"]) == {"1", "8"}
    assert document["scripts"]["acquire and release"] == 2
    assert document["scripts"]["a loser"] == 1
    assert document["scripts"]["a loser in the holder's process"] == 0
    assert document["scripts"]["renewal of 200 leases"] == 1
    assert document["ratios"]["8"]["redis-py"] > 0


async def test_help_says_what_is_measured_and_a_wrong_number_what_to_give(tmp_path: Path) -> None:
    ran = await bench("locks", "--help", folder=tmp_path)
    assert ran.code == 0 and "take and free a lock" in ran.out
    ran = await bench("locks", "--rounds=none", folder=tmp_path)
    assert ran.code == 2 and "give a whole number" in ran.err


async def test_a_way_that_does_not_get_its_locks_is_not_measured() -> None:
    async def cycle(key: str) -> None:
        raise NotTaken

    with pytest.raises(NotTaken):
        await cycles(cycle, 2, 0.1)
