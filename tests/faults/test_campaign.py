"""The chaos campaign in short: green as it is, and red for each break that is made on purpose."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio.sentinel import Sentinel

from faults.campaign import mutations
from faults.campaign.campaign import Options, Result, run
from faults.campaign.plan import STANDALONE, plan
from faults.campaign.redis_nodes import MASTER, SentinelSet

# One of each way to fail, for a short campaign.
_SOME = ("owner-kill", "owner-freeze", "redis-lose-data", "database-crash", "redis-silent",
         "client-cut", "deploy")  # fmt: skip


async def campaign(
    seconds: float, only: tuple[str, ...], mutation: str = "", seed: int = 1
) -> Result:
    faults = plan(seed, seconds, STANDALONE, only=only)
    assert {fault.kind for fault in faults} == set(only)
    options = Options(
        seed=seed, topology=STANDALONE, faults=faults, seconds=seconds, mutation=mutation,
        settle_s=3 if mutation else 60,
    )  # fmt: skip
    return await run(options, say=print)


def text(result: Result) -> str:
    return str(result.report)


async def test_under_faults_no_tick_is_doubled_or_lost_and_no_notification_is_lost() -> None:
    result = await campaign(16, _SOME, seed=5)
    assert result.is_green, text(result)
    assert "ticks in the window" in text(result)


@pytest.mark.parametrize(
    ("mutation", "seconds", "flaw"),
    [
        (mutations.NO_FENCE, 12, "stale writes"),
        (mutations.NO_LEDGER_KEY, 6, "doubled effects"),
        (mutations.NO_RESUME, 5, "lost notifications"),
    ],
)
async def test_a_broken_service_is_found(mutation: str, seconds: float, flaw: str) -> None:
    result = await campaign(seconds, mutations.PROVOKED_BY[mutation], mutation)
    assert any(each.startswith(flaw) for each in result.report.problems), text(result)


def test_an_interrupted_campaign_tells_what_it_saw_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faults.campaign", "--minutes", "5"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": folder},
        )  # fmt: skip
        assert process.stdout is not None
        said = ""
        while "received" not in said:  # the first line of progress
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=60)[0]
        assert process.returncode == 130, said
        assert "ticks in the window" in said and "interrupted" in said
        assert list(Path(folder).glob("chaos-*")) == []
        assert not [each for each in processes() if folder in each]


def processes() -> list[str]:
    """The command line and the folder of each process."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.append(f"{(each / 'cmdline').read_text()} {(each / 'cwd').readlink()}")
    return found


async def test_the_sentinels_of_a_campaign_fail_over_through_the_proxies(tmp_path: Path) -> None:
    redis = SentinelSet(tmp_path)
    try:
        await redis.start()
        sentinel = Sentinel([("127.0.0.1", each.port) for each in redis.sentinels])
        async with sentinel.master_for(MASTER) as client:
            await client.set("cron:job", "kept")
            assert await client.wait(2, 5000) == 2
        killed = await redis.master()
        await killed.kill()
        async with asyncio.timeout(30):
            while await redis.master() is killed:
                await asyncio.sleep(0.1)
            await redis.restart(killed)
            await redis.heal()
        assert await redis.master() is not killed
        async with sentinel.master_for(MASTER) as client:
            assert await client.get("cron:job") == b"kept"
        assert (await killed.ask("ROLE"))[0] == "slave"
        for each in sentinel.sentinels:
            await each.aclose()
    finally:
        await redis.stop()
