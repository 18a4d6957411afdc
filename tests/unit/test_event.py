"""The wire form: CloudEvents 1.0, whatever is in a notification."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.notifications.event import STORE_CLOSED, cloud_event
from solocron.storage.outbox import Notification

SEQS = st.integers(1, 2**63 - 1)


def event(seq: int = 1, created_at: int = 0, **data: object) -> dict[str, str]:
    encoded = cloud_event(Notification("42", seq, STORE_CLOSED, data, created_at))
    found: dict[str, str] = json.loads(encoded)
    return found


def test_every_attribute_is_what_the_design_says() -> None:
    assert event(17, 1_767_225_600_123, name="Müller") == {
        "specversion": "1.0", "id": "42:17", "source": "/stores/42", "type": "store.closed",
        "time": "2026-01-01T00:00:00.123Z", "sequence": "00000000000000000017",
        "datacontenttype": "application/json", "data": {"name": "Müller"},
    }  # fmt: skip


@given(SEQS, SEQS)
def test_sequences_sort_as_their_numbers_do(one: int, other: int) -> None:
    assert (event(one)["sequence"] < event(other)["sequence"]) == (one < other)


@given(st.integers(0, 253_402_300_799_999))
def test_the_time_is_exact_to_the_millisecond(created_at: int) -> None:
    text = event(created_at=created_at)["time"]
    assert text.endswith("Z") and len(text) == 24
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1) == created_at


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.integers()))
def test_an_event_is_one_line_of_utf_8(data: dict[str, int]) -> None:
    encoded = cloud_event(Notification("42", 1, STORE_CLOSED, data, 0))
    assert b"\n" not in encoded and json.loads(encoded.decode())["data"] == data


@pytest.mark.parametrize("name", ["\u2028", "\x7f", "😀", '"', "\\"])
def test_odd_characters_come_out_as_they_went_in(name: str) -> None:
    assert event(name=name)["data"] == {"name": name}
