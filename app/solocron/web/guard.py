"""What every request must pass before a handler sees it: origin, host, and a size limit."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from solocron.web.auth import Forbidden, Principal

READERS = ("jobs:run", "metrics:read")
_PORTS = {"http": 80, "https": 443}


class Peer(Protocol):
    """The other end, which a transport knows by `peername`."""

    def get_extra_info(self, name: str, /) -> Any:
        """What is known of the connection by that name, or None."""


class Request(Protocol):
    """What is looked at of a request: of aiohttp's, or of an ASGI server's."""

    @property
    def method(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def host(self) -> str: ...

    @property
    def transport(self) -> Peer | None: ...


def bearer(request: Request) -> str | None:
    """The token of the Authorization header, if there is one."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token else None


def basic_password(request: Request) -> str | None:
    """The password of HTTP basic authentication: what a browser can be asked for."""
    kind, _, pair = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(pair, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def own_page_token(request: Request) -> str | None:
    """The token of the Authorization header: the bearer's, or the password of basic authentication.

    A browser sends that password along whichever page asks. So with it only a page of this very
    host, and none of another allowed origin, may do more than read; a WebSocket counts as more.
    Raises Forbidden.
    """
    password = basic_password(request)
    if password is None:
        return bearer(request)
    if request.method not in ("GET", "HEAD") or "Upgrade" in request.headers:
        if "Origin" not in request.headers:
            raise Forbidden("with basic authentication only a page of this host may do this: send "
                            "Authorization: Bearer <token>")  # fmt: skip
        check_origin(request, frozenset())
    return password


def require_reader(principal: Principal) -> None:
    """Raise Forbidden unless the token may read how jobs are."""
    if not any(map(principal.may, READERS)):
        raise Forbidden(f"this needs a token with scope {' or '.join(map(repr, READERS))}")


def check_origin(request: Request, allowed: frozenset[str]) -> None:
    """A browser's page may come from this host or an allowed origin. Raises Forbidden.

    Whether this host is reached by http or https is not known behind a proxy: either will do, and a
    port that is not said is the default one of the origin's scheme.
    """
    text = request.headers.get("Origin")
    if text is None:
        return
    origin = _origin(text)
    if origin is not None:
        scheme = origin[0]
        if origin == _origin(f"{scheme}://{request.host}"):
            return
        if origin in map(_origin, allowed):
            return
    raise Forbidden(f"origin {text[:100]!r} is not allowed: add it to SOLOCRON_ORIGINS")


def cors(request: web.Request, allowed: frozenset[str]) -> dict[str, str]:
    """The headers that let a browser show an answer to a page of an allowed origin; one of this
    host's own needs none."""
    headers = {"Vary": "Origin"}
    text = request.headers.get("Origin", "")
    origin = _origin(text)
    if origin is not None and text.isascii() and origin in map(_origin, allowed):
        headers["Access-Control-Allow-Origin"] = text
        headers["Access-Control-Expose-Headers"] = "Retry-After"
    return headers


def _origin(text: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for "null" and all else that names no host."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not host:
        return None
    return parts.scheme, host, port or _PORTS[parts.scheme]


def check_host(request: Request) -> None:
    """Where everybody is let in, the peer must be on this machine, whatever address the host
    application listens on, and so must the Host: a page elsewhere whose name was made to point
    here (DNS rebinding) is refused. Raises Forbidden."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if isinstance(peer, tuple) and not is_loopback(str(peer[0])):
        raise Forbidden("without SOLOCRON_AUTH_SECRET only this machine is served")
    origin = _origin(f"http://{request.host}")
    if origin is None or not is_loopback(origin[1]):
        raise Forbidden(
            f"host {request.host[:100]!r}: without SOLOCRON_AUTH_SECRET only localhost is served"
        )


def quoted(value: object) -> str:
    """A value of somebody's JSON as an error shows it: short, and of a list or an object only that
    it is one, for deep ones cannot be turned to text."""
    if value is None or isinstance(value, str | int | float):
        return repr(str(value)[:64])
    return f"a {type(value).__name__}"


def address(request: Request) -> str:
    """Whom connections are counted for: the peer's IPv4 address, or the /64 network of its IPv6
    address, which is one customer's; '' for a Unix socket. A proxy's, where there is one: what
    X-Forwarded-For says, anybody can write."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(peer, tuple):
        return ""
    try:
        found = ipaddress.ip_address(peer[0])
    except ValueError:  # a name that an ASGI server gives
        return str(peer[0])[:100]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(found) >> 64 << 64)}/64"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
