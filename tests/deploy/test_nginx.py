"""The proxy's configuration in a real nginx before two real workers, which a client outlives."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from clients import Listener, connected, subscribe
from conftest import SECRET, RedisServer, free_port
from deployment import DEPLOY, judged, replaced, tool
from shops import open_shops
from solocron.settings import Settings
from streams import StreamClient
from workers import Worker, prepare, until

HOSTS = ("127.0.0.1", "127.0.0.2")
SHOP = "shop-00000"
TOKEN = jwt.encode(
    {"aud": "solocron", "exp": 4_000_000_000, "stores": "*", "scope": "admin"}, SECRET
)


class Names(asyncio.DatagramProtocol):
    """A name server: every name has these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        head = data[:2] + struct.pack("!5H", 0x8180, 1, len(self.addresses), 0, 0)
        answers = b"".join(
            struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(each)
            for each in self.addresses
        )
        self._transport.sendto(head + question + answers, peer)


def configuration(folder: Path, port: int, workers: int, names: int) -> Path:
    """The deployed file, but for where it listens, writes and asks for names."""
    text = replaced(
        (DEPLOY / "nginx.conf").read_text(), ("/tmp/", f"{folder}/"),
        ("listen 8080;", f"listen 127.0.0.1:{port};"), ("worker:8080", f"worker:{workers}"),
        ("resolver 127.0.0.11", f"resolver 127.0.0.1:{names}"),
    )  # fmt: skip
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


def nginx(config: Path) -> list[str]:
    own = " user root;" if os.geteuid() == 0 else ""  # who may read the test's folder
    return [tool("nginx", "nginx"), "-e", "stderr", "-c", str(config), "-g", f"daemon off;{own}"]


class Site:
    """Two workers behind the proxy on `port`."""

    def __init__(self, redis: str, database: str) -> None:
        self.port, self._workers_port = free_port(), free_port()
        self.names = Names(*HOSTS)
        self.workers: dict[str, Worker] = {}
        self._redis, self._database = redis, database

    async def start(self, host: str) -> None:
        self.workers[host] = await Worker.start(
            redis=self._redis, database=self._database, host=host, port=self._workers_port,
            auth_secret=SECRET, max_connections_per_address=0,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: self.names, local_addr=("127.0.0.1", 0)
        )
        names = transport.get_extra_info("sockname")[1]
        command = nginx(configuration(folder, self.port, self._workers_port, names))
        await asyncio.gather(*map(self.start, HOSTS))
        process = await asyncio.create_subprocess_exec(*command)
        try:
            await until(self.is_served, 20)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
            transport.close()
            await asyncio.gather(*(each.stop() for each in self.workers.values()))

    async def is_served(self) -> bool:
        try:
            return await self.get("/readyz") == 200
        except aiohttp.ClientError:
            return False

    async def get(self, path: str, **headers: str) -> int:
        """The status of an answer of the proxy's."""
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", headers=headers) as http,
            http.get(path) as answer,
        ):
            return answer.status

    async def put(self, shop: str, action: str) -> None:
        """Open or close a store; again while no worker has answered."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", headers=headers) as http:
            while True:
                async with http.post(f"/api/v1/stores/{shop}/{action}") as answer:
                    if answer.status == 200:
                        return
                    assert answer.status in (502, 503, 504), await answer.text()


@pytest.fixture
async def site(own_redis: RedisServer, postgres_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    tool("nginx", "nginx")
    database = await prepare(postgres_url)
    await open_shops(database, 2)
    await database.close()
    site = Site(own_redis.url, postgres_url)
    async with site.running(tmp_path):
        yield site


def test_nginx_takes_the_file(tmp_path: Path) -> None:
    config = configuration(tmp_path, free_port(), 1, 53)
    assert "[warn]" not in judged(*nginx(config), "-t")


async def test_a_websocket_is_upgraded_and_each_frame_goes_on_at_once(site: Site) -> None:
    async with connected(site.port, TOKEN) as ws:
        assert ws.protocol == "solocron.v1"
        await subscribe(ws, {SHOP: 0})
        await site.put(SHOP, "close")
        async with asyncio.timeout(5):
            assert (await ws.receive_json())["id"] == f"{SHOP}:1"


async def test_a_page_of_this_site_may_connect_and_no_other(site: Site) -> None:
    own = {"origin": f"http://127.0.0.1:{site.port}"}
    async with connected(site.port, TOKEN, **own) as ws:
        await subscribe(ws, {SHOP: 0})
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        async with connected(site.port, TOKEN, origin="http://evil.example"):
            pass
    # Nor one of the same host by another port: the proxy passes the port on.
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        async with connected(site.port, TOKEN, origin="http://127.0.0.1"):
            pass


async def test_an_event_stream_is_not_buffered(site: Site) -> None:
    stream = await StreamClient.connect(site.port, f"?stores={SHOP}:0", auth=TOKEN)
    assert stream.status == 200
    assert (await stream.event(5)).event == "subscribed"
    for number, action in enumerate(("close", "open", "close"), 1):
        await site.put(SHOP, action)
        assert (await stream.event(5)).id == f"{SHOP}:{number}"
    stream.close()


async def test_the_workers_metrics_are_not_shown_and_their_probes_are(site: Site) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert await site.get("/metrics", **bearer) == 404
    assert await site.get("/healthz") == await site.get("/readyz") == 200
    assert await site.get("/api/v1/stores") == 401
    assert await site.get("/api/v1/stores", **bearer) == 200


async def change(site: Site, count: int) -> None:
    for number in range(count):
        await site.put(SHOP, "open" if number % 2 else "close")
        await asyncio.sleep(0.02)


async def socket_client(site: Site, listener: Listener, until: int) -> None:
    """Until the connection ends, or `until` notifications are known."""
    try:
        async with connected(site.port, TOKEN) as ws:
            await subscribe(ws, {SHOP: listener.last.get(SHOP, 0)})
            await listener.listen(ws, until)
    except aiohttp.ClientError:
        await asyncio.sleep(0.05)


async def stream_client(site: Site, listener: Listener, until: int) -> None:
    last = listener.last.get(SHOP, 0)
    stream = await StreamClient.connect(site.port, f"?stores={SHOP}:{last}", auth=TOKEN)
    if stream.status == 200:
        while len(listener.events) < until and (event := await stream.block(30)) is not None:
            if event.data:
                listener.hear(event.data)
    stream.close()


@pytest.mark.parametrize("client", [socket_client, stream_client])
async def test_a_client_outlives_each_worker_and_has_each_once(site: Site, client: Any) -> None:
    changes, listener, connections = 150, Listener(), 0
    changing = asyncio.create_task(change(site, changes))

    async def replace() -> None:
        for host, at in zip(HOSTS, (changes // 4, changes // 2), strict=True):
            await until(lambda at=at: heard(listener, at), 60)
            site.workers[host].signal(signal.SIGKILL)
            await site.workers[host].stop()
            await site.start(host)

    replacing = asyncio.create_task(replace())
    async with asyncio.timeout(90):
        while len(listener.events) < changes:
            connections += 1
            await client(site, listener, changes)
        await asyncio.gather(changing, replacing)
    assert connections >= 2
    listener.assert_each_once([SHOP], changes)


async def heard(listener: Listener, count: int) -> bool:
    return len(listener.events) >= count


async def test_a_worker_that_is_gone_is_passed_over(site: Site) -> None:
    """Its name still has the address: no answer fails."""
    site.workers[HOSTS[0]].signal(signal.SIGKILL)
    assert [await site.get("/readyz") for _ in range(20)] == [200] * 20


async def test_a_worker_with_a_new_address_is_found(site: Site) -> None:
    for worker in site.workers.values():
        worker.signal(signal.SIGKILL)
        await worker.stop()
    await site.start("127.0.0.3")
    assert not await site.is_served()  # nor could it be: the name has the old addresses
    site.names.addresses = ("127.0.0.3",)
    await until(site.is_served, 15)


def test_a_silent_link_lives_longer_than_a_heartbeat() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    seconds = [int(each) for each in re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", text)]
    assert len(seconds) == 2
    assert min(seconds) > 3 * Settings.model_fields["heartbeat"].default
