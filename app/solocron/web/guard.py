"""What every request must pass before a handler sees it: origin, host, and a size limit."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from solocron.web.auth import Forbidden


def bearer(request: web.Request) -> str | None:
    """The token of the Authorization header, if there is one."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token else None


def check_origin(request: web.Request, allowed: frozenset[str]) -> None:
    """A browser's page may come from this host or an allowed origin. Raises Forbidden."""
    origin = request.headers.get("Origin")
    if origin is None or origin in allowed:
        return
    if urlsplit(origin).netloc.lower() != request.host.lower():
        raise Forbidden(
            f"origin {origin[:100]!r} is not allowed: add it to SOLOCRON_ORIGINS"
        )  # fmt: skip


def check_host(request: web.Request) -> None:
    """Where everybody is let in, the Host must be this machine: a page elsewhere whose name was
    made to point here (DNS rebinding) is refused. Raises Forbidden."""
    host = urlsplit(f"//{request.host}").hostname or ""
    if not is_loopback(host):
        raise Forbidden(
            f"host {host[:100]!r}: without SOLOCRON_AUTH_SECRET only localhost is served"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
