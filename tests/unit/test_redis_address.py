"""Where Redis is: what a URL may say, and what it must not give away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.errors import ConfigError
from solocron.locks.address import as_cluster, parse_address
from solocron.locks.slots import Node, SlotRange, read_slots
from solocron.settings import load


def test_one_server_is_what_the_library_takes() -> None:
    for url in ("redis://u:p@h:1/2", "rediss://h", "unix:///run/redis.sock?db=1"):
        address = parse_address(url)
        assert (address.kind, address.urls) == ("single", (url,))


def test_sentinels_have_a_password_of_their_own_and_ports_by_default() -> None:
    address = parse_address(
        "rediss+sentinel://app:p%2Fw@a,b:7,[::1]:8/shop/3"
        "?sentinel_username=watch&sentinel_password=s%40w&ssl_cert_reqs=none"
    )
    assert address.kind == "sentinel"
    assert address.master == "shop"
    assert address.urls == tuple(
        f"rediss://watch:s%40w@{host}?ssl_cert_reqs=none" for host in ("a:26379", "b:7", "[::1]:8")
    )
    assert address.data_url == "rediss://app:p%2Fw@a:26379/3?ssl_cert_reqs=none"
    assert "p%2Fw" not in repr(address) and "s%40w" not in repr(address)


def test_a_sentinel_without_a_password_is_sent_none() -> None:
    address = parse_address("redis+sentinel://app:pw@a/shop")
    assert address.urls == ("redis://a:26379",)
    assert address.data_url == "redis://app:pw@a:26379/"


def test_a_clusters_nodes_share_user_and_options() -> None:
    address = parse_address("rediss+cluster://u:p@a,b:7/0?ssl_cert_reqs=none")
    assert (address.kind, address.urls) == (
        "cluster",
        ("rediss://u:p@a:6379?ssl_cert_reqs=none", "rediss://u:p@b:7?ssl_cert_reqs=none"),
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1,b:2", "redis+sentinel://a:1/", "redis+sentinel://a:1/x y",
        "redis+sentinel://a:1/shop/one", "redis+sentinel:///shop", "redis+sentinel://a:0/shop",
        "redis+sentinel://a:65536/shop", "redis+sentinel://a,,b/shop", "redis+cluster://a/1",
        "redis+cluster://", "redis+cluster://u:p@x@a", "redis+cluster://a?db=x",
        "redis+cluster://a?no_such_option=1", "redis+cluster://" + ",".join("a" * 101),
        "redis+other://a", "unix+cluster:///x",
    ],
)  # fmt: skip
def test_what_names_no_server_is_refused_in_words(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^REDIS_URL .*give redis://host:6379/0"):
        parse_address(url)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ConfigError, match="REDIS_URL does not name the master, as in /master"):
        parse_address("redis+sentinel://h:1")
    with pytest.raises(ConfigError, match="a cluster has one database"):
        parse_address("redis+cluster://h:1/2")


@given(
    rest=st.text(max_size=60),
    scheme=st.sampled_from(["redis", "rediss+sentinel", "redis+cluster", "redis+sentinel", ""]),
)
def test_any_text_is_an_address_or_is_refused(scheme: str, rest: str) -> None:
    try:
        address = parse_address(f"{scheme}://hunter2{rest}")
    except ConfigError as error:
        assert "hunter2" not in str(error)
    else:
        assert address.urls and (address.kind != "sentinel" or address.data_url)


def test_redis_cluster_makes_a_plain_url_one_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_CLUSTER", "1")
    monkeypatch.setenv("REDIS_HOST", "a")
    assert load().redis == "redis+cluster://a:6379/0"
    monkeypatch.setenv("REDIS_URL", "rediss://b:7/0?ssl_cert_reqs=none")
    assert load().redis == "rediss+cluster://b:7/0?ssl_cert_reqs=none"
    assert as_cluster("redis+cluster://a,b") == "redis+cluster://a,b"
    monkeypatch.setenv("REDIS_CLUSTER", "perhaps")
    with pytest.raises(ConfigError, match="REDIS_CLUSTER is 'perhaps': give 1 or 0"):
        load()


def test_slots_are_read_and_nonsense_is_not() -> None:
    reply = [[0, 8191, [b"a", 1, b"id"], [b"b", 2, b"id"]], [8192, 16383, [b"", 3, b"id"]]]
    assert read_slots(reply, "asked") == [
        SlotRange(0, 8191, Node("a", 1)),
        SlotRange(8192, 16383, Node("asked", 3)),
    ]
    many = [[n, n, [b"h%d" % n, 1]] for n in range(3000)]
    for nonsense in ([], b"OK", None, [[1, 2]], [[0, b"x", [b"a", 1]]], [[0, 1, 2]], many):
        with pytest.raises((ValueError, TypeError)):
            read_slots(nonsense, "asked")
