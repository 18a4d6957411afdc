"""The browser's client outside of a browser: in Node it hears the same, and says what it needs."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_client_live import with_shops
from test_socket_tokens import of, turn
from test_web import Api

import solocron

FILE = (Path(solocron.__file__).parent / "web/static/solocron.js").as_uri()
LISTEN = """
const client = new Client(process.argv[1], { 1: 0 }, {
    token: process.argv[2],
    onEvent: (event) => { console.log(`${event.storeId}:${event.seq}`); client.close(); },
});"""
FAIL = """
try { new Client(process.argv[1], {}); } catch (error) { console.log(String(error)); }"""


@pytest.fixture
async def api(environment: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with with_shops() as api:
        yield api


async def node(script: str, *arguments: str, has_sockets: bool = True) -> str:
    """What a script prints that has imported the client."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is missing: apt-get install nodejs")
    text = f"import {{ Client }} from {json.dumps(FILE)};{script}"
    switch = "--experimental-websocket" if has_sockets else "--no-experimental-websocket"
    process = await asyncio.create_subprocess_exec(
        path, switch, "--no-warnings", "--input-type=module", "--eval", text, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    if b"bad option" in err:
        pytest.skip("this node is too old: install Node 22")
    assert (process.returncode, err) == (0, b""), err.decode()
    return out.decode().strip()


async def test_it_hears_in_node_what_it_does_in_a_page(api: Api) -> None:
    await turn(api, "1")
    assert await node(LISTEN, f"http://127.0.0.1:{api.port}/ws", of("1")) == "1:1"


async def test_without_a_page_it_asks_for_the_whole_url() -> None:
    assert await node(FAIL, "/ws") == (
        "TypeError: /ws is no URL: outside of a page give all of it, such as wss://shop.example/ws"
    )


async def test_without_sockets_it_says_what_has_them() -> None:
    told = await node(FAIL, "ws://127.0.0.1:1/ws", has_sockets=False)
    assert told == "Error: no WebSocket here: use a browser, or Node 22"
