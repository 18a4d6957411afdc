"""Where Redis is: one server, the master that Sentinel names, or a cluster. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from solocron.errors import ConfigError

_MAX_HOSTS = 100
_PORTS = {"sentinel": 26379, "cluster": 6379}
_SEVERAL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<user>[^@/?#]*)@)?"
    r"(?P<hosts>[^@/?#]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#@]*))?"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?")
_FORMS = (
    "give redis://host:6379/0 (or rediss://, unix:///path), "
    "redis+sentinel://host:26379,host:26379/master or redis+cluster://host:6379,host:6379; "
    "a password goes before the host, its '/', '#', '?' and '@' as %2F, %23, %3F and %40"
)


class _Wrong(ValueError):
    """What is wrong with a URL, without a word of it."""


@dataclass(frozen=True)
class Address:
    """Plain URLs of Redis servers, which may hold a password: no repr shows them.

    `single`: `urls` has the one. `cluster`: some of the nodes, which name the others. `sentinel`:
    `urls` are the sentinels, `master` the name they know the master by, and `data_url` a URL whose
    host and port are to be those they answer.
    """

    kind: Literal["single", "sentinel", "cluster"]
    urls: tuple[str, ...]
    master: str = ""
    data_url: str = ""

    @property
    def database(self) -> int:
        """The number of the database; a cluster has one only, 0."""
        url = self.data_url or self.urls[0]
        return int(ConnectionPool.from_url(url).connection_kwargs.get("db") or 0)

    def __repr__(self) -> str:
        return f"Address({self.kind})"


def parse_address(url: str) -> Address:
    """The address in a URL. Raises ConfigError, which shows nothing of the URL: any part of a
    malformed one may be its password."""
    try:
        found = _SEVERAL.fullmatch(url)
        address = _several(found.groupdict("")) if found else _single(url)
        for each in (*address.urls, *filter(None, [address.data_url])):
            # Whatever an option is wrong with, the library raises it in some form of its own.
            make_pool(each, 1.0).make_connection()  # type: ignore[no-untyped-call]
    except _Wrong as wrong:
        raise ConfigError(f"REDIS_URL {wrong}; {_FORMS}") from None
    except Exception:
        raise ConfigError(f"REDIS_URL is not usable: {_FORMS}") from None
    return address


def check_url(url: str) -> None:
    """Raise ConfigError unless `url` says where Redis is."""
    parse_address(url)


def as_cluster(url: str) -> str:
    """A plain URL as one of a node of a cluster; any other URL as it is."""
    scheme, separator, rest = url.partition("://")
    return (
        f"{scheme}+cluster://{rest}" if scheme in ("redis", "rediss") else scheme + separator + rest
    )


def make_pool(url: str, deadline_s: float) -> ConnectionPool:
    """A source of connections to a plain URL, which take `deadline_s` to connect at most.

    They have no socket timeout: they idle between ticks, each call has a deadline of its own, and
    with one the library writes under `asyncio.wait_for`, which makes a task per write and on
    Python 3.11 can swallow a cancellation. It does not retry: see `link`.
    """
    pool = ConnectionPool.from_url(url)
    pool.connection_kwargs.update(  # behind the URL's own options
        protocol=2, decode_responses=False, retry=Retry(NoBackoff(), 0), socket_timeout=None,
        socket_connect_timeout=deadline_s, health_check_interval=0,
    )  # fmt: skip
    return pool


def _single(url: str) -> Address:
    parts = urlsplit(url)
    if parts.scheme != "unix" and re.fullmatch(r"/?[0-9]*", parts.path) is None:
        raise _Wrong("has a path that is no database number")
    if parts.fragment or "@" in parts.query:
        raise _Wrong("has a password that is not escaped")
    return Address("single", (url,))


def _several(parts: dict[str, str]) -> Address:
    """The address in the parts of a URL with several hosts. Raises ValueError."""
    kind: Literal["sentinel", "cluster"] = "sentinel" if parts["kind"] == "sentinel" else "cluster"
    hosts = [_host(each, _PORTS[kind]) for each in parts["hosts"].split(",")]
    if len(hosts) > _MAX_HOSTS:
        raise _Wrong(f"names more than {_MAX_HOSTS} hosts")
    user = f"{parts['user']}@" if parts["user"] else ""
    options = (
        dict(parse_qsl(parts["query"], keep_blank_values=True, strict_parsing=True))
        if parts["query"]
        else {}
    )
    watcher = "".join(
        sign + quote(options.pop(f"sentinel_{name}", ""), safe="")
        for sign, name in (("", "username"), (":", "password"))
    )
    query = f"?{urlencode(options)}" if options else ""
    scheme = f"{parts['scheme']}://"
    if kind == "cluster":
        if parts["path"] not in ("", "/", "/0"):
            raise _Wrong("has a database number, and a cluster has one database")
        return Address(kind, tuple(f"{scheme}{user}{host}{query}" for host in hosts))
    master, _, database = parts["path"][1:].partition("/")
    if re.fullmatch(r"[\w.-]{1,100}", master) is None or not re.fullmatch(r"[0-9]*", database):
        raise _Wrong("does not name the master, as in /master or /master/0")
    watcher = f"{watcher}@" if watcher != ":" else ""
    urls = tuple(f"{scheme}{watcher}{host}{query}" for host in hosts)
    return Address(kind, urls, master, f"{scheme}{user}{hosts[0]}/{database}{query}")


def _host(text: str, port: int) -> str:
    found = _HOST.fullmatch(text)
    if found is None or not 0 < int(found[2] or port) < 65536:
        raise _Wrong("has a host or a port that is none")
    return f"{found[1]}:{found[2] or port}"
