"""What follows a connection's end: which ends are final, and the pauses before the next try."""

from __future__ import annotations

import pytest

from solocron.client import Client
from solocron.client.reconnect import Backoff, hint_s, is_final, is_final_status
from solocron.errors import InvalidInput
from solocron.web.connections import GOING_AWAY, reconnect_delays


@pytest.mark.parametrize(
    ("code", "reason", "seconds"),
    [
        (1001, "reconnect-after-ms=0", 0.0),
        (1001, "reconnect-after-ms=1250", 1.25),
        (1001, "reconnect-after-ms=99999999", 60.0),
        (1001, "", None),
        (1001, "this server is going away: reconnect", None),
        (1001, "reconnect-after-ms=", None),
        (1001, "reconnect-after-ms=-5", None),
        (1001, "reconnect-after-ms=1e3", None),
        (1001, "reconnect-after-ms=²", None),
        (1001, "x reconnect-after-ms=5", None),
        (4408, "reconnect-after-ms=5", None),
        (1006, "reconnect-after-ms=5", None),
    ],
)
def test_only_a_server_that_goes_away_says_when_to_come_back(
    code: int, reason: str, seconds: float | None
) -> None:
    assert hint_s(code, reason) == seconds


def test_what_our_servers_ask_for_is_understood() -> None:
    for delay in reconnect_delays(50):
        assert hint_s(GOING_AWAY, f"reconnect-after-ms={delay}") == delay / 1000


def test_some_ends_are_final() -> None:
    assert [each for each in (1000, 1001, 1006, 1008, 1009, 1011, 1012, 1013, 4401, 4403, 4408,
                              4429) if is_final(each)] == [1008, 1009, 4401, 4403]  # fmt: skip
    statuses = (200, 400, 401, 403, 404, 408, 426, 429, 500, 502, 503, 504)
    assert [each for each in statuses if not is_final_status(each)] == [
        408,
        429,
        500,
        502,
        503,
        504,
    ]


def test_pauses_are_random_and_double_up_to_the_longest() -> None:
    longest = Backoff(1.0, 30.0, lambda: 1.0)
    assert [longest.pause_s() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    longest.reset()
    assert longest.pause_s() == 1
    assert Backoff(1.0, 30.0, lambda: 0.25).pause_s() == 0.25
    tired = Backoff(1.0, 30.0, lambda: 1.0)
    assert max(tired.pause_s() for _ in range(5000)) == 30


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080/ws", "ftp://host/ws", "ws://", "ws:///ws"])
def test_an_address_of_no_use_is_named(url: str) -> None:
    with pytest.raises(InvalidInput, match="give one such as"):
        Client(url, ["1"])
