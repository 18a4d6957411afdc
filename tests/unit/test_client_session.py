"""The client's protocol without a connection: what it asks, and what it makes of each frame."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.client.reconnect import Refused
from solocron.client.session import (
    Authenticated,
    Event,
    Gap,
    InvalidFrame,
    Item,
    Session,
    StoresRefused,
    Unavailable,
    wanted,
)
from solocron.errors import InvalidInput
from solocron.notifications.event import cloud_event
from solocron.notifications.hub import subscribed
from solocron.storage.outbox import Notification
from solocron.web import frames


def news(store: str, seq: int, feed: int | None = None) -> str:
    """The frame of a notification, as the server makes it."""
    row = Notification(store, seq, "store.closed", {"name": store}, 1_700_000_000_123, feed)
    return cloud_event(row).decode()


def answer(**stores: tuple[int, bool]) -> str:
    """A `subscribed`: of each store its newest seq, and whether it is recovered."""
    return subscribed({each: {"seq": seq, "recovered": recovered}
                       for each, (seq, recovered) in stores.items()}).decode()  # fmt: skip


def error(code: Any, *stores: str) -> str:
    frame: frames.Error = {"type": "error", "code": code, "message": "so it is"}
    return frames.encode({**frame, "stores": list(stores)} if stores else frame).decode()


def asked(session: Session) -> Any:
    """The request to be sent now."""
    frame = session.outgoing()
    return None if frame is None else json.loads(frame)


def connected(**stores: int | None) -> Session:
    """A session that waits for the answer to its subscribe."""
    session = Session(stores)
    session.opened(None)
    assert asked(session) == {"type": "subscribe", "stores": stores}
    return session


def live(**stores: int) -> Session:
    """A session that has come so far with these, and misses nothing."""
    session = connected(**stores)
    assert session.feed(answer(**{each: (seq, True) for each, seq in stores.items()})) == []
    return session


def seqs(items: list[Item]) -> list[int]:
    return [each.seq for each in items if isinstance(each, Event)]


# -- notifications -----------------------------------------------------------------------------


def test_a_notification_is_an_event() -> None:
    moment = datetime.fromtimestamp(1_700_000_000, UTC).replace(microsecond=123_000)
    event = Event("42", 8, "store.closed", moment, {"name": "42"})
    session = live(**{"42": 7})
    assert session.feed(news("42", 8)) == [event]
    assert session.positions == {"42": 8}


def test_a_repeat_is_discarded_and_moves_nothing() -> None:
    session = live(a=3, b=0)
    assert [seqs(session.feed(news("a", each))) for each in (3, 4, 4, 2, 5)] == [
        [], [4], [], [], [5],
    ]  # fmt: skip
    assert session.positions == {"a": 5, "b": 0}


def test_only_new_ones_start_at_the_newest_and_are_resumed_from_there() -> None:
    session = connected(a=None)
    session.feed(answer(a=(9, True)))
    session.opened(None)
    assert asked(session)["stores"] == {"a": 9}


def test_a_notification_of_before_the_answer_is_not_one_of_after() -> None:
    """It was on its way when the store was unsubscribed, and subscribed again from elsewhere."""
    session = live(a=17)
    session.unsubscribe(["a"])
    session.subscribe({"a": 0})
    assert session.feed(news("a", 18)) == []
    assert asked(session) == {"type": "unsubscribe", "stores": ["a"]}
    assert asked(session) is None  # one request at a time
    session.feed('{"type":"unsubscribed","stores":["a"]}')
    assert asked(session) == {"type": "subscribe", "stores": {"a": 0}}
    assert session.feed(news("a", 18)) == []
    session.feed(answer(a=(18, True)))
    assert seqs(session.feed(news("a", 1))) == [1]


def test_of_all_stores_the_position_is_that_in_the_feed() -> None:
    session = connected(**{"*": 5})
    session.feed(answer(**{"*": (7, True)}))
    items = session.feed(news("b", 1, feed=6)) + session.feed(news("a", 9, feed=7))
    assert [(each.store_id, each.seq, each.feed) for each in items if isinstance(each, Event)] == [
        ("b", 1, 6), ("a", 9, 7),
    ]  # fmt: skip
    assert session.feed(news("a", 9, feed=7)) == []
    assert session.positions == {"*": 7}


@given(st.randoms(use_true_random=False))
def test_whatever_is_repeated_and_wherever_it_is_cut_each_comes_once_and_in_order(
    rng: random.Random,
) -> None:
    session, heads, got = Session({"a": 0, "b": 0}), {"a": 0, "b": 0}, {"a": [0], "b": [0]}

    def hear(frame: str) -> None:
        for item in session.feed(frame):
            assert isinstance(item, Event), item
            got[item.store_id].append(item.seq)

    for _ in range(6):
        session.opened(None)
        starts = asked(session)["stores"]
        hear(answer(**{each: (seq, True) for each, seq in heads.items()}))
        for store in rng.choices("ab", k=rng.randrange(8)):
            heads[store] += 1
            first = min(starts[store], heads[store] - 1) + 1
            for seq in range(rng.randint(first, heads[store]), heads[store] + 1):
                if seq <= session.positions[store] + 1:  # type: ignore[operator]  # never None
                    hear(news(store, seq))
        for store, head in heads.items():
            if rng.random() < 0.5:  # else the cut comes before
                for seq in range(starts[store] + 1, head + 1):
                    hear(news(store, seq))
    for seqs_got in got.values():
        assert seqs_got == list(range(len(seqs_got)))


# -- gaps --------------------------------------------------------------------------------------


def test_what_was_pruned_is_told_before_what_is_left() -> None:
    session = connected(a=3)
    assert session.feed(answer(a=(9, False))) == [Gap("a", 3, 9)]
    assert seqs(session.feed(news("a", 8))) == [8]  # told once
    assert session.positions == {"a": 8}


def test_a_gap_that_nothing_followed_is_not_told_again() -> None:
    session = connected(a=3)
    session.feed(answer(a=(9, False)))
    session.opened(None)
    assert asked(session)["stores"] == {"a": 3}
    assert session.feed(answer(a=(9, False))) == []
    session.opened(None)
    session.outgoing()
    assert session.feed(answer(a=(10, False))) == [Gap("a", 3, 10)]  # a new one is


def test_a_database_that_was_restored_is_gone_on_with() -> None:
    session = connected(a=100)
    assert session.feed(answer(a=(19, False))) == [Gap("a", 100, 19)]
    assert session.positions == {"a": 19}
    assert seqs(session.feed(news("a", 20))) == [20]


def test_a_gap_in_mid_stream_is_told_and_is_no_answer() -> None:
    session = live(a=3)
    session.subscribe({"b": 0})
    assert asked(session)["stores"] == {"b": 0}
    assert session.feed(answer(a=(6, False))) == [Gap("a", 3, 6)]
    assert session.feed(news("b", 1)) == []  # still not answered
    session.feed(answer(b=(1, True)))
    assert seqs(session.feed(news("a", 7)) + session.feed(news("b", 1))) == [7, 1]


def test_a_jump_that_nobody_told_of_is_a_gap() -> None:
    session = live(a=3)
    gap, event = session.feed(news("a", 6))
    assert gap == Gap("a", 3, 6) and seqs([event]) == [6]
    assert seqs(session.feed(news("a", 7))) == [7]


# -- what is asked -----------------------------------------------------------------------------


def test_a_connection_begins_with_the_token_and_asks_in_portions() -> None:
    session = Session(dict.fromkeys(map(str, range(2500)), 1))
    session.opened("a-token")
    assert asked(session) == {"type": "authenticate", "token": "a-token"}
    assert asked(session) is None
    assert session.feed('{"type":"authenticated","expires_in":60}') == [Authenticated(60)]
    sizes = []
    while (frame := asked(session)) is not None:
        sizes.append(len(frame["stores"]))
        session.feed(answer(**{each: (1, True) for each in frame["stores"]}))
    assert sizes == [1000, 1000, 500]


def test_what_is_watched_already_goes_on_where_it_is() -> None:
    session = live(a=3)
    session.subscribe({"a": 0})
    assert asked(session) is None and session.positions == {"a": 3}


def test_what_is_not_watched_is_not_unsubscribed() -> None:
    session = live(a=3)
    session.unsubscribe(["b"])
    assert asked(session) is None
    session.unsubscribe(["a", "a"])
    assert asked(session) == {"type": "unsubscribe", "stores": ["a"]}
    assert session.positions == {}


def test_without_a_connection_it_is_noted_and_asked_for_when_there_is_one() -> None:
    session = Session({"a": 1})
    session.subscribe({"b": None})
    session.unsubscribe(["a"])
    assert asked(session) is None
    session.opened(None)
    assert asked(session)["stores"] == {"b": None}


def test_a_request_that_was_given_up_before_it_was_sent_is_not_sent() -> None:
    session = connected(a=0)
    session.subscribe({"b": 0})
    session.subscribe({"c": 0})
    session.unsubscribe(["b"])
    session.feed(answer(a=(0, True)))
    assert asked(session)["stores"] == {"c": 0}


def test_a_new_token_goes_before_what_waits() -> None:
    session = connected(a=0)
    session.subscribe({"b": 0})
    session.authenticate("new")
    session.feed(answer(a=(0, True)))
    assert asked(session) == {"type": "authenticate", "token": "new"}


@pytest.mark.parametrize(
    ("stores", "found"),
    [
        ("*", {"*": None}),
        ("42", {"42": None}),
        (["1", "2"], {"1": None, "2": None}),
        ({"1": 4, "2": None}, {"1": 4, "2": None}),
        ([], {}),
    ],
)
def test_what_to_watch_is_said_in_several_ways(stores: Any, found: Any) -> None:
    assert wanted(stores) == found


@pytest.mark.parametrize("stores", [[1], [""], {"a": -1}, {"a": True}, {"a": "1"}, {"a": 1.0}])
def test_what_cannot_be_watched_is_named(stores: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^store "):
        wanted(stores)


def test_all_stores_are_watched_alone() -> None:
    with pytest.raises(InvalidInput, match="watch it alone"):
        Session({"*": None, "1": None})
    session = Session({"1": None})
    with pytest.raises(InvalidInput, match="watch it alone"):
        session.subscribe({"*": None})
    assert session.positions == {"1": None}


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["unknown-store", "forbidden"])
def test_refused_stores_are_raised_and_not_asked_for_again(code: str) -> None:
    session = connected(a=0, b=0)
    session.feed(answer(a=(0, True)))
    with pytest.raises(StoresRefused, match="'b'") as caught:
        session.feed(error(code, "b"))
    assert (caught.value.code, caught.value.stores) == (code, ("b",))
    assert session.positions == {"a": 0}
    assert seqs(session.feed(news("a", 1))) == [1]


def test_when_none_of_the_stores_is_there_the_next_request_is_sent() -> None:
    session = connected(a=0)
    session.subscribe({"b": 0})
    session.feed(answer())
    with pytest.raises(StoresRefused):
        session.feed(error("unknown-store", "a"))
    assert asked(session)["stores"] == {"b": 0}


def test_stores_a_renewed_token_is_not_for_are_raised() -> None:
    session = live(a=0, b=0)
    session.authenticate("less")
    session.outgoing()
    session.feed('{"type":"authenticated","expires_in":null}')
    with pytest.raises(StoresRefused) as caught:
        session.feed('{"type":"unsubscribed","stores":["a"]}')
    assert (caught.value.code, caught.value.stores) == ("forbidden", ("a",))


def test_an_answer_that_has_to_wait_is_asked_for_again() -> None:
    session = connected(a=4)
    assert session.feed(error("unavailable")) == [Unavailable()]
    assert asked(session) is None
    session.ask_again()
    assert asked(session)["stores"] == {"a": 4}


def test_a_request_of_no_use_is_raised() -> None:
    session = connected(a=0)
    with pytest.raises(Refused, match="so it is") as caught:
        session.feed(error("invalid"))
    assert caught.value.code == 1008


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "1", "null", "[" * 100_000, '{"specversion":"1.0"}', '{"type":"subscribed"}',
        '{"type":"subscribed","stores":[1]}', '{"type":"subscribed","stores":{"a":{}}}',
        '{"type":"error"}', '{"type":"authenticated","expires_in":"x"}',
        '{"type":"unsubscribed","stores":1}', news("a", 1).replace(":1", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_the_connection_and_moves_nothing(text: str) -> None:
    session = live(a=0)
    with pytest.raises(InvalidFrame):
        session.feed(text)
    assert session.positions == {"a": 0}


def test_what_a_newer_server_may_say_is_ignored() -> None:
    session = live(a=0)
    assert session.feed('{"type":"pong"}') == session.feed('{"type":"weather"}') == []
    assert session.feed(error("busy")) == session.feed(error("unavailable")) == []
