"""The client's side of `solocron.v1`: what it asks for, how far it has come, and what a frame means
for that. Pure: frames go in and out as text.

One request is under way at a time, so each answer is that of the request before it, and a server
that sends much is never waited for by a client that sends much. A notification counts only between
the `subscribed` of its store and the `unsubscribe`: one of before is not taken for one of after.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from solocron.client.reconnect import Refused
from solocron.errors import InvalidInput, SolocronError

EVERY = "*"
PING = '{"type":"ping"}'
_STORES_A_FRAME = 1000
_POLICY = 1008


@dataclass(frozen=True, slots=True)
class Event:
    """The `seq`-th notification of a store; `feed` is its number among those of all stores, where
    all are watched."""

    store_id: str
    seq: int
    type: str
    time: datetime
    data: Mapping[str, Any]
    feed: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Notifications of a store (or of all: `*`) that can not be had any more: after `last`, the one
    seen last, those that come next are not the next ones. `newest` is the newest there is; before
    `last` if the server's database was restored from a backup."""

    store_id: str
    last: int
    newest: int


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The token was taken; whole seconds until it ends (None: never)."""

    expires_in: int | None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The server cannot answer now: `Session.ask_again` after a pause."""


class StoresRefused(SolocronError):
    """These `stores` do not exist (`code` is `unknown-store`), or the token is not for them
    (`forbidden`). They are watched no more; the iteration can be gone on with for the others."""

    def __init__(self, code: str, stores: Sequence[str]) -> None:
        what = "there are no such stores" if code == "unknown-store" else "no right to stores"
        more = f" and {len(stores) - 10} more" if len(stores) > 10 else ""
        super().__init__(f"{what}: {', '.join(map(repr, stores[:10]))}{more}")
        self.code = code
        self.stores = tuple(stores)


class InvalidFrame(ValueError):
    """No server of ours sends this."""


Item = Event | Gap | Authenticated | Unavailable


def wanted(stores: Mapping[str, int | None] | Iterable[str]) -> dict[str, int | None]:
    """What to watch: ids with the last seq seen, or None for only new ones; ids alone; or EVERY.
    Raises InvalidInput."""
    if isinstance(stores, str):
        stores = [stores]
    found = dict(stores) if isinstance(stores, Mapping) else dict.fromkeys(stores)
    for store_id, seq in found.items():
        if not isinstance(store_id, str) or not store_id:
            raise InvalidInput(f"store {store_id!r:.64}: give the id as a string")
        whole = isinstance(seq, int) and not isinstance(seq, bool) and seq >= 0
        if seq is not None and not whole:
            raise InvalidInput(f"store {store_id!r:.64}: the last seq is {seq!r:.64}: "
                               "give a whole number, or None for only new ones")  # fmt: skip
    return found


class Session:
    """What is watched, and the last seq taken of each (`positions`), over all connections."""

    def __init__(self, stores: Mapping[str, int | None]) -> None:
        self._last: dict[str, int | None] = {}
        self._live: set[str] = set()
        self._gaps: dict[str, tuple[int, int]] = {}  # told, and nothing has come since
        self._requests: deque[dict[str, Any]] = deque()
        self._asked: dict[str, Any] | None = None
        self._is_open = self._is_held = False
        self.accepted = False  # whether this connection's token, if any, was taken
        self.subscribe(stores)

    @property
    def positions(self) -> dict[str, int | None]:
        """The last seq of each store watched; None where none is known."""
        return dict(self._last)

    # -- what is asked -----------------------------------------------------------------------

    def subscribe(self, stores: Mapping[str, int | None]) -> None:
        """Watch these too; one that is watched goes on where it is. Raises InvalidInput."""
        fresh = {each: seq for each, seq in stores.items() if each not in self._last}
        if EVERY in (both := self._last | fresh) and len(both) > 1:
            raise InvalidInput("'*' is all stores: watch it alone, or else stores by their ids")
        self._last |= fresh
        if self._is_open:
            self._request_stores(fresh)

    def unsubscribe(self, stores: Iterable[str]) -> None:
        """Watch these no more; those that are not watched are ignored."""
        gone = [each for each in dict.fromkeys(stores) if each in self._last]
        self._forget(gone)
        if self._is_open:
            for start in range(0, len(gone), _STORES_A_FRAME):
                some = gone[start : start + _STORES_A_FRAME]
                self._requests.append({"type": "unsubscribe", "stores": some})

    def authenticate(self, token: str) -> None:
        """Go on with another token."""
        self._requests.appendleft({"type": "authenticate", "token": token})

    def opened(self, token: str | None) -> None:
        """There is a connection: ask for everything, from where it was left."""
        self.closed()
        self._is_open = True
        if token is not None:
            self.authenticate(token)
        self._request_stores(self._last)

    def closed(self) -> None:
        """There is none any more."""
        self._is_open = self._is_held = self.accepted = False
        self._asked = None
        self._requests.clear()
        self._live.clear()

    def ask_again(self) -> None:
        """The pause that `Unavailable` asked for is over."""
        self._is_held = False

    def outgoing(self) -> str | None:
        """The frame to send now, if there is one; it counts as sent."""
        if self._asked is not None or not self._requests or self._is_held:
            return None
        self._asked = self._requests.popleft()
        if self._asked["type"] == "subscribe":  # from where it is now, if still wanted
            stores = {each: self._last[each] for each in self._asked["stores"]
                      if each in self._last}  # fmt: skip
            self._asked = {"type": "subscribe", "stores": stores} if stores else None
        return json.dumps(self._asked) if self._asked is not None else self.outgoing()

    def _request_stores(self, stores: Iterable[str]) -> None:
        ids = list(stores)
        for start in range(0, len(ids), _STORES_A_FRAME):
            some = ids[start : start + _STORES_A_FRAME]
            self._requests.append({"type": "subscribe", "stores": some})

    def _forget(self, stores: Iterable[str]) -> None:
        for each in stores:
            self._last.pop(each, None)
            self._gaps.pop(each, None)
            self._live.discard(each)

    # -- what is heard -----------------------------------------------------------------------

    def feed(self, text: str) -> list[Item]:
        """What a frame says, in order. Raises StoresRefused, Refused, or InvalidFrame for one
        after which the connection is of no use."""
        try:
            frame = json.loads(text)
            match frame.get("type"):
                case _ if "specversion" in frame:
                    return self._event(frame)
                case "subscribed":
                    return self._subscribed(frame["stores"])
                case "authenticated":
                    return self._authenticated(frame["expires_in"])
                case "unsubscribed":
                    return self._unsubscribed(frame["stores"])
                case "error":
                    return self._error(frame["code"], frame["message"], frame.get("stores", []))
            return []  # a pong, or what a newer server may say
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidFrame(f"a frame that cannot be read: {text[:80]!r}") from error

    def _event(self, frame: Mapping[str, Any]) -> list[Item]:
        store_id, _, seq = frame["id"].rpartition(":")
        feed = int(frame["feedsequence"]) if "feedsequence" in frame else None
        event = Event(
            store_id, int(seq), frame["type"], datetime.fromisoformat(frame["time"]),
            frame["data"], feed,
        )  # fmt: skip
        topic, number = (store_id, event.seq) if feed is None else (EVERY, feed)
        last = self._last.get(topic)
        if topic not in self._live or last is None or number <= last:
            return []
        items: list[Item] = [event]
        if number > last + 1 and topic not in self._gaps:
            items.insert(0, Gap(topic, last, number))
        self._last[topic] = number
        self._gaps.pop(topic, None)
        return items

    def _subscribed(self, stores: Mapping[str, Mapping[str, Any]]) -> list[Item]:
        self.accepted = True
        asked = self._asked or {}
        if asked.get("type") == "subscribe" and stores.keys() <= asked["stores"].keys():
            self._asked = None
            self._live |= stores.keys() & self._last.keys()
        gaps: list[Item] = []
        for store_id in stores.keys() & self._live:
            last, newest = self._last[store_id], int(stores[store_id]["seq"])
            if last is None:
                self._last[store_id] = newest
            elif not stores[store_id]["recovered"]:
                if self._gaps.get(store_id) != (last, newest):
                    gaps.append(Gap(store_id, last, newest))
                self._last[store_id] = min(last, newest)
                self._gaps[store_id] = (min(last, newest), newest)
        return gaps

    def _authenticated(self, expires_in: int | None) -> list[Item]:
        self.accepted = True
        self._answered("authenticate")
        return [Authenticated(None if expires_in is None else int(expires_in))]

    def _unsubscribed(self, stores: Sequence[str]) -> list[Item]:
        self._answered("unsubscribe")
        hidden = [each for each in stores if each in self._live]
        if hidden:  # nobody asked for it: the renewed token is not for them
            self._refuse("forbidden", hidden)
        return []

    def _error(self, code: str, message: str, stores: Sequence[str]) -> list[Item]:
        if code in ("forbidden", "unknown-store"):
            self._refuse(code, [each for each in stores if each in self._last])
        elif code == "invalid":
            raise Refused(_POLICY, str(message))
        elif code == "unavailable" and self._asked is not None:
            self._requests.appendleft(self._asked)
            self._asked, self._is_held = None, True
            return [Unavailable()]
        return []

    def _refuse(self, code: str, stores: Sequence[str]) -> None:
        self._forget(stores)
        if stores:
            raise StoresRefused(code, stores)

    def _answered(self, kind: str) -> None:
        if self._asked is not None and self._asked["type"] == kind:
            self._asked = None
