"""The AsyncAPI document: it is one, and says what the code does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from contract import Contract
from solocron.errors import InvalidInput
from solocron.notifications.event import check_own_event
from solocron.storage.feed import EVERY
from solocron.stores.told import DATA
from solocron.web import connections, frames, session
from solocron.web.asyncapi import document

OFFICIAL = Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json"
DOCUMENT = document()
CONTRACT = Contract(DOCUMENT)
MESSAGES = DOCUMENT["components"]["messages"]
EXAMPLES = [each["payload"] for message in MESSAGES.values() for each in message["examples"]]


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON value."""
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from parts(each)
    if isinstance(value, dict):
        yield value


def at(reference: str) -> Any:
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def names(frame: Any) -> list[str]:
    return CONTRACT.from_client(frame) + CONTRACT.from_server(frame)


def test_it_is_valid_by_the_official_schema() -> None:
    official = Draft7Validator(json.loads(OFFICIAL.read_text()))
    official.check_schema(official.schema)
    assert [each.message for each in official.iter_errors(DOCUMENT)] == []
    broken = copy.deepcopy(DOCUMENT)
    broken["operations"]["ping"]["action"] = "answer"
    assert not official.is_valid(broken)


def test_every_reference_leads_somewhere_and_every_part_is_referred_to() -> None:
    found = {part["$ref"] for part in parts(DOCUMENT) if "$ref" in part}
    for each in found:
        assert isinstance(at(each), dict)
    for kind in ("schemas", "messages", "securitySchemes"):
        for name in DOCUMENT["components"][kind]:
            assert f"#/components/{kind}/{name}" in found


def test_every_message_is_of_an_operation_and_has_examples_which_it_alone_admits() -> None:
    assert CONTRACT.received | CONTRACT.sent == {*MESSAGES}
    assert not CONTRACT.received & CONTRACT.sent
    for name, message in MESSAGES.items():
        assert message["examples"]
        for each in message["examples"]:
            assert names(each["payload"]) == [name]


def test_every_type_of_notification_and_every_close_code_is_in_it() -> None:
    types = {
        each["properties"]["type"]["const"]
        for name, each in DOCUMENT["components"]["schemas"].items()
        if "specversion" in each["properties"] and name != "OwnEvent"
    }
    assert types == {*DATA}
    channel = DOCUMENT["channels"]["notifications"]
    codes = {connections.GOING_AWAY, session.POLICY, 1009, session.INTERNAL,
             connections.UNAUTHENTICATED, session.FORBIDDEN, session.SLOW,
             session.TOO_MANY}  # fmt: skip
    assert {*channel["x-close-codes"]} == {str(each) for each in codes}
    for code in channel["x-close-codes"]:
        assert f"- {code}: " in channel["description"]


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: str(frame.get("type")))
def test_a_frame_with_a_field_too_few_or_too_many_is_none_of_them(frame: dict[str, Any]) -> None:
    optional = {"feedsequence"} | ({"stores"} if frame["type"] == "error" else set())
    for name in frame:
        less = {key: value for key, value in frame.items() if key != name}
        assert bool(names(less)) == (name in optional), name
        assert names({**frame, name: [{"strange": "value"}]}) == []
    assert names({**frame, "Extra": "x"}) == []
    is_event = "specversion" in frame
    assert bool(names({**frame, "traceparent": "00-1"})) == is_event  # an extension attribute
    assert names({**frame, "extra": {"no": "object"}}) == []
    is_own = names(frame) == ["ownEvent"]  # of which only the host knows the data
    for name in () if is_own else frame.get("data", ()):
        less = {key: value for key, value in frame["data"].items() if key != name}
        assert names({**frame, "data": less}) == []
        assert names({**frame, "data": {**frame["data"], name: 1}}) == []
    if is_event:
        assert bool(names({**frame, "data": {**frame["data"], "extra": "x"}})) == is_own
        assert names({**frame, "time": "2026-04-24 06:00"}) == []
        assert names({**frame, "sequence": "18"}) == []


@pytest.mark.parametrize("type_", ["store.new", "", "a b", "a" * 65, "-"])
def test_no_type_of_a_hosts_own_looks_like_ours_or_is_refused_by_the_code(type_: str) -> None:
    (own,) = [each for each in EXAMPLES if names(each) == ["ownEvent"]]
    assert names({**own, "type": type_}) == []
    with pytest.raises(InvalidInput):
        check_own_event(type_, {})


def test_a_position_is_whole() -> None:
    good = {"seq": 1, "recovered": True}
    bad: list[dict[str, Any]] = [
        {"seq": 1}, {**good, "more": 1}, {**good, "seq": -1}, {**good, "recovered": None},
    ]  # fmt: skip
    for position in bad:
        assert CONTRACT.from_server({"type": "subscribed", "stores": {"1": position}}) == []


# An id's end is not judged where Python's `$` and that of JSON Schema differ.
IDS = st.one_of(
    st.text(max_size=70), st.text("aZ09._~-", max_size=66), st.sampled_from([EVERY, ".", "..", ""])
).filter(lambda text: not text.endswith("\n"))
SEQS = st.one_of(
    st.none(), st.booleans(), st.text(max_size=2), st.sampled_from([0.5, -0.5]),
    st.integers(-2, 2), st.integers(frames.MAX_SEQ - 1, frames.MAX_SEQ + 2),
)  # fmt: skip


@given(st.one_of(st.dictionaries(IDS, SEQS, max_size=3), st.lists(IDS, max_size=2), SEQS))
def test_it_allows_the_subscriptions_that_the_code_takes(stores: Any) -> None:
    try:
        frames.positions(stores)
        taken = True
    except InvalidInput:
        taken = False
    frame = {"type": "subscribe", "stores": stores}
    assert CONTRACT.from_client(frame) == (["subscribe"] if taken else [])


@pytest.mark.parametrize("count", [0, 1, frames.MAX_STORES, frames.MAX_STORES + 1])
def test_it_allows_as_many_stores_as_the_code_takes(count: int) -> None:
    stores = {str(number): None for number in range(count)}
    allowed = CONTRACT.from_client({"type": "subscribe", "stores": stores})
    if allowed:
        frames.positions(stores)
    else:
        with pytest.raises(InvalidInput):
            frames.positions(stores)
    assert bool(allowed) == (0 < count <= frames.MAX_STORES)
