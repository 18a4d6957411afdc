"""What one client was sent, judged as it comes. Pure.

A client comes back with its last seq of each store, so whatever is sent to it next must be the
next one: a seq it has is a *repeat*, one further ahead a *gap*, on one connection or over many.
A checksum over the bytes of all that it took, in order, tells whether they are the table's.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from solocron.storage.feed import EVERY

_KEPT = 5  # faults that are told in words
_ID = re.compile(rb'"id":"([^"]+):(\d+)"')
_FEED = re.compile(rb'"feedsequence":"(\d+)"')


def digest(events: Iterable[bytes]) -> int:
    """The checksum over events in order."""
    total = 0
    for event in events:
        total = zlib.crc32(event, total)
    return total


class Record:
    """How far a client has come in each of `topics`: stores, or EVERY."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.last = dict.fromkeys(topics, 0)
        self.sums = dict.fromkeys(topics, 0)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.catch_ups_s: list[float] = []
        self._behind: dict[str, int] | None = None
        self._lost_at: float | None = None

    def take(self, event: bytes, now: float) -> None:
        """A notification was sent to the client at `now` (s of any clock)."""
        if EVERY in self.last:
            topic, found = EVERY, _FEED.search(event)
            seq = int(found[1]) if found else 0
        else:
            found = _ID.search(event)
            topic, seq = (found[1].decode(), int(found[2])) if found else ("", 0)
        last = self.last.get(topic)
        if last is None:
            self._fault("strange", f"what it does not watch: {event[:80]!r}")
        elif seq <= last:
            self._fault("repeats", f"{topic}:{seq} again, after {last}")
        else:
            if seq > last + 1:
                self.counts["lost"] += seq - last - 1
                self._fault("gaps", f"{topic}:{seq} after {last}")
            self.last[topic] = seq
            self.sums[topic] = zlib.crc32(event, self.sums[topic])
            self.counts["taken"] += 1
            self._caught_up(topic, seq, now)

    def subscribed(self, answer: bytes, now: float) -> None:
        """The server said where it begins."""
        stores: dict[str, Any] = json.loads(answer)["stores"]
        for topic, position in stores.items():
            if not position["recovered"]:
                self._fault("refused", f"the history of {topic} after {self.last.get(topic)}")
        self.counts["connections"] += 1
        self.counts["resumes"] += any(self.last.values())
        if self._lost_at is not None:
            heads = {topic: position["seq"] for topic, position in stores.items()}
            self._behind = {
                topic: seq for topic, seq in heads.items() if self.last.get(topic, seq) < seq
            }
            self._caught_up("", 0, now)

    def positions(self, text: str) -> None:
        """An event stream's `id` says how far its client has come."""
        said = dict(each.rsplit(":", 1) for each in text.split(","))
        if said != {topic: str(seq) for topic, seq in self.last.items()}:
            self._fault("positions", f"{text[:80]} although it has {self.last}")

    def lost(self, now: float) -> None:
        """The connection has ended, or could not be made."""
        self._behind = None
        if self._lost_at is None and self.counts["connections"]:
            self._lost_at = now

    def error(self, text: str) -> None:
        """The server said that the client did wrong."""
        self._fault("errors", text[:200])

    def _caught_up(self, topic: str, seq: int, now: float) -> None:
        behind = self._behind
        if behind is None or self._lost_at is None:
            return
        if topic in behind and seq >= behind[topic]:
            del behind[topic]
        if not behind:
            self.catch_ups_s.append(now - self._lost_at)
            self._behind = self._lost_at = None

    def _fault(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.faults) < _KEPT:
            self.faults.append(f"{kind}: {text}")

    def has(self, heads: dict[str, int]) -> bool:
        """Whether the client has come to the heads of what it watches."""
        return all(seq >= heads[topic] for topic, seq in self.last.items())

    def shown(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "last": self.last, "sums": self.sums, "counts": self.counts, "faults": self.faults,
            "catch_ups_s": self.catch_ups_s,
        }  # fmt: skip
