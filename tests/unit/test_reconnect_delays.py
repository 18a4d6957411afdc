"""When the clients of a server that goes come back: evenly spread, at a rate that can be taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.web.connections import reconnect_delays


def spread_of(count: int) -> float:
    """Over how many ms so many are spread."""
    return min(max(5_000, count), 30_000)


@given(st.integers(0, 3_000))
def test_one_comes_in_each_of_as_many_equal_parts(count: int) -> None:
    delays = sorted(reconnect_delays(count))
    assert len(delays) == count
    part = spread_of(count) / max(1, count)
    for number, delay in enumerate(delays):
        assert int(number * part) <= delay < (number + 1) * part


@pytest.mark.parametrize(
    ("count", "longest"), [(1, 5_000), (5_000, 5_000), (10_000, 10_000), (60_000, 30_000)]
)
def test_no_more_come_in_a_second_than_can_be_taken(count: int, longest: int) -> None:
    delays = reconnect_delays(count)
    assert min(delays) >= 0 and max(delays) < longest
    of_second = [0] * 30
    for delay in delays:
        of_second[delay // 1000] += 1
    assert max(of_second) <= max(1_000, count // 30) + 2


def test_who_came_last_does_not_leave_last() -> None:
    delays = reconnect_delays(1_000)
    assert delays != sorted(delays) and delays != sorted(delays, reverse=True)
    assert reconnect_delays(0) == []
