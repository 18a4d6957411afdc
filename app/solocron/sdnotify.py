"""Tells the service manager how this process is: systemd's notify protocol (sd_notify(3)).

Each message is one datagram to the socket NOTIFY_SOCKET names. With `WatchdogSec=` the manager
expects one at least so often; they are sent by a task on the event loop, so that a process whose
loop is blocked falls silent, and is restarted. A manager that does not listen stops nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import Self

log = logging.getLogger("solocron")

_MAX_PATH = 107  # bytes: what a socket's address holds
_SHORTEST_S = 0.01


def socket_address(text: str) -> bytes | None:
    """The address of a NOTIFY_SOCKET: a path, or `@name` for an abstract socket. None for what is
    neither, such as a VSOCK address."""
    if not text.startswith(("/", "@")) or len(os.fsencode(text)) > _MAX_PATH or len(text) < 2:
        return None
    raw = os.fsencode(text)
    return b"\0" + raw[1:] if text.startswith("@") else raw


def watchdog_period(environ: Mapping[str, str], pid: int) -> float | None:
    """Within how many s the manager wants to hear of process `pid`; None if it does not."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None  # it is meant for a process above this one
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    return int(text) / 1e6 or None


class ServiceManager:
    """The service manager at `address`, or nobody; it wants a sign of life within `within_s`, or
    none."""

    def __init__(self, address: bytes | None, within_s: float | None = None) -> None:
        self._address = address
        self._within_s = within_s
        self._has_failed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """The manager that started this process, if one did."""
        text = environ.get("NOTIFY_SOCKET", "")
        address = socket_address(text)
        if text and address is None:
            log.warning("NOTIFY_SOCKET is %r: only Unix sockets are known", text[:200])
        return cls(address, watchdog_period(environ, os.getpid()))

    def ready(self, status: str) -> None:
        """The service has started."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """The service has begun to stop."""
        self._send("STOPPING=1\nSTATUS=running jobs finish or are handed over")

    async def stay_alive(self) -> None:
        """Send signs of life, two in each period, until cancelled; none if none is wanted."""
        if self._address is None or self._within_s is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(max(_SHORTEST_S, self._within_s / 2))

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)  # a manager that is busy must not block the loop
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("The service manager cannot be told: %s", error.strerror or error)
