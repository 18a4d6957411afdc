"""The delivery trial's checker: what is flawless is green, and each kind of flaw is red by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from acceptance.delivery.check import Facts, check
from acceptance.delivery.plan import KINDS, STREAM, crowd, plan
from acceptance.delivery.record import Record, digest
from solocron.notifications.event import cloud_event
from solocron.storage.feed import EVERY
from solocron.storage.outbox import Notification

EVENTS = [cloud_event(Notification("shop", seq, "store.closed", {}, 0)) for seq in (1, 2, 3)]
FEED = [cloud_event(Notification("shop", n, "store.closed", {}, 0, feed=n)) for n in (1, 2, 3)]


def answer(topic: str, seq: int, recovered: str = "true") -> bytes:
    return (
        f'{{"type":"subscribed","stores":{{"{topic}":{{"seq":{seq},"recovered":{recovered}}}}}}}'
    ).encode()


def client(*events: bytes, topic: str = "shop", recovered: str = "true") -> dict[str, Any]:
    record = Record([topic])
    record.subscribed(answer(topic, 0, recovered), 0)
    for event in events:
        record.take(event, 0)
    return {"name": "client 0", **record.shown()}


FLAWLESS = Facts(
    heads={"shop": 3, EVERY: 3}, table={"shop": [1, 2, 3], EVERY: [1, 2, 3]},
    sums={"shop": digest(EVENTS), EVERY: digest(FEED)},
    clients=[client(*EVENTS), client(*FEED, topic=EVERY)],
    faults={"deploy": 2}, unpublished=0, errors=[], written_s=1, settled_s=1,
)  # fmt: skip


def test_what_is_flawless_is_green_and_counted() -> None:
    report = check(FLAWLESS)
    assert report.is_green and report.problems == []
    rows = dict(report.rows)
    assert rows["notifications written"] == "3 in 1 s"
    assert rows["delivered to them"] == "6"
    assert rows["faults injected"] == "2" and rows["  deploy"] == "2"


@pytest.mark.parametrize(
    ("flaw", "changed"),
    [
        ("lost", {"clients": [client(*EVENTS[:2])]}),
        ("lost", {"clients": [client(EVENTS[0], EVENTS[2])]}),
        ("lost", {"clients": [client(*FEED[1:], topic=EVERY)]}),
        ("repeated", {"clients": [client(*EVENTS, EVENTS[2])]}),
        ("repeated", {"clients": [client(EVENTS[0], EVENTS[2], EVENTS[1])]}),
        ("altered", {"clients": [client(*EVENTS[:2], EVENTS[2].replace(b"closed", b"opened"))]}),
        ("strange", {"clients": [client(*EVENTS, EVENTS[0].replace(b"shop", b"other"))]}),
        ("history refused", {"clients": [client(*EVENTS, recovered="false")]}),
        ("gaps in the table", {"table": {**FLAWLESS.table, "shop": [1, 3]}}),
        ("unpublished", {"unpublished": 1}),
        ("errors logged", {"errors": ["w0: ERROR"]}),
        ("nothing happened", {"clients": []}),
        ("nothing happened", {"clients": [{"name": "client 1", **Record([]).shown()}]}),
    ],
)  # fmt: skip
def test_each_flaw_is_red(flaw: str, changed: dict[str, Any]) -> None:
    problems = check(replace(FLAWLESS, **changed)).problems
    assert [each for each in problems if each.startswith(flaw)], problems


def test_a_stream_whose_id_is_not_its_clients_position_is_found() -> None:
    record = Record(["a", "b"])
    record.positions("b:0,a:0")
    assert record.faults == []
    record.positions("a:0,b:1")
    assert record.counts["positions"] == 1


def test_a_catch_up_lasts_from_the_lost_link_until_the_head_that_was_said() -> None:
    record = Record(["shop"])
    record.lost(1)  # before the first connection nothing is lost
    record.subscribed(answer("shop", 3), 2)
    record.take(EVENTS[0], 3)
    assert record.catch_ups_s == []
    record.lost(4)
    record.lost(5)  # in vain
    record.subscribed(answer("shop", 3), 6)
    record.take(EVENTS[1], 7)
    assert record.catch_ups_s == []
    record.take(EVENTS[2], 9)
    record.lost(10)
    record.subscribed(answer("shop", 3), 11)
    assert record.catch_ups_s == [5, 1]


def test_faults_and_clients_are_a_function_of_the_seed_and_every_kind_comes() -> None:
    faults = plan(1, 1000, len(KINDS))
    assert faults == plan(1, 1000, len(KINDS)) != plan(2, 1000, len(KINDS))
    assert {each.kind for each in faults} == set(KINDS)
    assert [each.at for each in faults] == sorted(each.at for each in faults)
    assert faults[0].at > 0 and faults[-1].at < 1000
    seats = crowd(1, 2000, 500)
    assert seats == crowd(1, 2000, 500)
    assert Counter(each.wire for each in seats)[STREAM] == 200
    assert Counter(each.wire for each in seats if each.topics == [EVERY]).total() == 6
