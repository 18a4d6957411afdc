"""Many WebSocket clients in one thread, on bare sockets and one epoll: they must cost less than any
server does. What they get is compared with what they must get, byte for byte."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from benchmarks.common import BenchError

_PER_ADDRESS = 1000  # what a server takes of one address, unless told otherwise
_SPARE_FILES = 200
_NAP_S = 0.0002
_SILENCE_S = 60.0
_READ = 256 * 1024
_HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Sec-WebSocket-Protocol: solocron.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
)
_MASK = bytes(4)  # masks nothing, and is as valid as any


class SwarmError(BenchError):
    """A server did not do what was asked of it."""


@dataclass(frozen=True)
class Plan:
    """What one client does: the token of its request, the frame it sends once it is let in, and the
    bytes it gets then. `stalls`: it reads nothing after that."""

    token: str
    says: bytes
    hears: bytes
    stalls: bool = False


def allow_files(count: int) -> None:
    """Let this process, and those it starts, have `count` files open. Raises SwarmError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError):
        raise SwarmError(
            f"{count} connections need {wanted} open files, and {hard} are allowed: "
            f"raise the limit (ulimit -Hn {wanted}, as root) or give fewer clients"
        ) from None


def masked(payload: bytes) -> bytes:
    """A client's text frame."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + _MASK + payload


class _Client:
    __slots__ = ("connection", "expected", "got", "head", "plan")

    def __init__(self, connection: socket.socket, plan: Plan) -> None:
        self.connection = connection
        self.plan = plan
        self.head: bytes | None = b""  # of the answer to the handshake; None when it was read
        self.expected = plan.hears
        self.got = 0


class Swarm:
    """Clients of the server on `port` of 127.0.0.1, each with a plan of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: dict[int, _Client] = {}
        self._stalled: list[_Client] = []
        self._poll = select.epoll()
        self._arrived: list[float] = []

    def __len__(self) -> int:
        return len(self._clients)

    def connect(
        self, plans: Iterable[Plan], *, at_once: int = 500,
        progress: Callable[[int], None] = lambda ready: None,
    ) -> None:  # fmt: skip
        """Connect a client for each plan, `at_once` at a time; returns when each has heard all of
        its plan. Raises SwarmError."""
        waiting, started, ready = iter(plans), 0, 0
        under_way, heard = 0, time.monotonic()
        while True:
            for plan in islice(waiting, at_once - under_way):
                self._start(plan, len(self) + len(self._stalled))
                started += 1
            done = self._turn()
            ready += done
            under_way = started - ready
            if not under_way:
                return
            if done:
                heard = time.monotonic()
                progress(ready)
            elif time.monotonic() > heard + _SILENCE_S:
                raise SwarmError(f"{under_way} clients were not let in, or did not get all")

    def _start(self, plan: Plan, number: int) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        if plan.stalls:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.bind((f"127.0.0.{1 + number // _PER_ADDRESS}", 0))
        connection.connect_ex(("127.0.0.1", self._port))
        self._clients[connection.fileno()] = _Client(connection, plan)
        self._poll.register(connection, select.EPOLLOUT)

    def gather(self, data: bytes) -> list[float]:
        """Wait until every client has got just these bytes; when (monotonic s) each had them."""
        clients = self._clients.values()
        for client in clients:
            client.expected, client.got = data, 0
        self._arrived = []
        heard, missing = time.monotonic(), len(clients)
        while missing:
            done = self._turn()
            missing -= done
            if done:
                heard = time.monotonic()
            elif time.monotonic() > heard + _SILENCE_S:
                raise SwarmError(f"{missing} of {len(clients)} clients did not get all")
        return self._arrived

    def _turn(self) -> int:
        """Read what has come; how many clients have got all they expected by that."""
        ready = self._poll.poll(0, 4096)
        if not ready:
            time.sleep(_NAP_S)  # so that a server is not slowed by waking us for each client
            return 0
        clients, done = self._clients, 0
        for number, events in ready:
            client = clients[number]
            if client.head is None:
                done += self._read(client)
            elif events & select.EPOLLOUT:
                token = client.plan.token
                client.connection.send(_HANDSHAKE.format(port=self._port, token=token).encode())
                self._poll.modify(number, select.EPOLLIN)
            else:
                done += self._upgrade(client)
        return done

    def _upgrade(self, client: _Client) -> int:
        assert client.head is not None
        client.head += self._received(client)
        head, end, rest = client.head.partition(b"\r\n\r\n")
        if not end:
            return 0
        if not head.startswith(b"HTTP/1.1 101 "):
            raise SwarmError(f"a client was not let in: {head[:100]!r}")
        client.head = None
        client.connection.send(client.plan.says)
        return self._take(client, rest)

    def _read(self, client: _Client) -> int:
        return self._take(client, self._received(client))

    @staticmethod
    def _received(client: _Client) -> bytes:
        try:
            data = client.connection.recv(_READ)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise SwarmError(f"a connection was cut: {error.strerror}") from None
        if not data:
            raise SwarmError("a connection was closed by its server")
        return data

    def _take(self, client: _Client, data: bytes) -> int:
        start, client.got = client.got, client.got + len(data)
        if client.expected[start : client.got] != data:
            wanted = client.expected[start : client.got]
            raise SwarmError(f"a client got {data[:300]!r} and not {wanted[:300]!r}")
        if client.got < len(client.expected):
            return 0
        self._arrived.append(time.monotonic())
        if client.plan.stalls:
            number = client.connection.fileno()
            self._poll.unregister(number)
            self._stalled.append(self._clients.pop(number))
        return 1

    def close(self) -> None:
        """Cut all connections."""
        for client in self._all():
            client.connection.close()
        self._clients.clear()
        self._stalled.clear()
        self._poll.close()

    def _all(self) -> Iterator[_Client]:
        yield from self._clients.values()
        yield from self._stalled
