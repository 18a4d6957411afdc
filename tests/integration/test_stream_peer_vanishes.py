"""An event stream's client loses its address, as a machine without power would: nobody says so."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from test_socket import nobody_left
from test_web import put, serving, token

HERE, THERE = "10.213.77.1", "10.213.77.2"


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def island() -> Iterator[str]:
    """A network of its own, joined to this one by a cable."""
    name = "solocron-test"
    if shutil.which("ip") is None or shutil.which("curl") is None or not ip("netns", "add", name):
        pytest.skip("no network can be made here: run as root, with iproute2 and curl")
    try:
        assert ip("link", "add", "sct0", "type", "veth", "peer", "name", "sct1", "netns", name)
        for words in (f"addr add {HERE}/30 dev sct0", "link set sct0 up"):
            assert ip(*words.split())
        for words in (f"addr add {THERE}/30 dev sct1", "link set sct1 up"):
            assert ip("-n", name, *words.split())
        yield name
    finally:
        ip("netns", "del", name)
        ip("link", "del", "sct0")


async def test_a_peer_that_vanished_is_found_out_by_its_silence(
    environment: pytest.MonkeyPatch, island: str
) -> None:
    environment.setenv("SOLOCRON_HOST", "0.0.0.0")
    environment.setenv("SOLOCRON_HEARTBEAT", "0.5")
    async with serving() as api:
        await put(api, "1")
        url, bearer = (
            f"http://{HERE}:{api.port}/events?stores=1",
            f"Authorization: Bearer {token()}",
        )
        curl = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", island, "curl", "-sN", "-H", bearer, url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert curl.stdout is not None
        async with asyncio.timeout(10):
            while await curl.stdout.readline() != b": keep-alive\n":
                pass
        began = asyncio.get_running_loop().time()
        assert ip("-n", island, "addr", "del", f"{THERE}/30", "dev", "sct1")
        await nobody_left(api, 10)
        assert 0.9 < asyncio.get_running_loop().time() - began < 4
        curl.kill()
        await curl.communicate()
