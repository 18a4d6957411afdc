"""The frames of subprotocol `solocron.v1`, as types, and how a client's are read. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from solocron.errors import InvalidInput
from solocron.storage.feed import EVERY
from solocron.stores.model import is_store_id
from solocron.web.guard import quoted

MAX_STORES = 10_000
MAX_SEQ = 2**63 - 1


class Authenticate(TypedDict):
    """Who the client is: first of all, unless its request said so, and to renew its token."""

    type: Literal["authenticate"]
    token: str


class Subscribe(TypedDict):
    """What to hear of: store ids, or `*` for all stores, each with the last seq seen, or null for
    only new ones."""

    type: Literal["subscribe"]
    stores: dict[str, int | None]


class Unsubscribe(TypedDict):
    """What to hear of no more."""

    type: Literal["unsubscribe"]
    stores: list[str]


class Ping(TypedDict):
    """Is somebody there? For clients that see no WebSocket pings."""

    type: Literal["ping"]


class Authenticated(TypedDict):
    """The answer to `authenticate`; whole seconds until the token ends, null: never."""

    type: Literal["authenticated"]
    expires_in: int | None


class Unsubscribed(TypedDict):
    """The answer to `unsubscribe`; or what a renewed token is not for."""

    type: Literal["unsubscribed"]
    stores: list[str]


class Pong(TypedDict):
    """The answer to `ping`."""

    type: Literal["pong"]


class Error(TypedDict):
    """A frame could not be used, or in part: for these stores."""

    type: Literal["error"]
    code: Literal["forbidden", "unknown-store", "unavailable", "invalid"]
    message: str
    stores: NotRequired[list[str]]


def encode(answer: Authenticated | Unsubscribed | Pong | Error) -> bytes:
    """An answer as JSON."""
    return json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()


def parse(text: str) -> dict[str, Any]:
    """A frame's JSON object. Raises InvalidInput."""
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"not JSON: {text[:80]!r}") from None
    if not isinstance(frame, dict):
        raise InvalidInput(f"a JSON object is expected, not {text[:80]!r}")
    return frame


def token_of(frame: Mapping[str, Any]) -> str | None:
    """The token of an `authenticate`; None for any other frame."""
    token = frame.get("token")
    return token if frame.get("type") == "authenticate" and isinstance(token, str) else None


def is_topic(text: str) -> bool:
    """Whether it can be subscribed to: a store's id, or EVERY."""
    return text == EVERY or is_store_id(text)


def positions(stores: object) -> dict[str, int | None]:
    """The `stores` of a subscribe: id to last seq, or null. Raises InvalidInput."""
    if not isinstance(stores, dict) or not stores:
        raise InvalidInput('subscribe: stores must be an object such as {"42": 17, "43": null}')
    if len(stores) > MAX_STORES:
        raise InvalidInput(f"subscribe: {len(stores)} stores; at most {MAX_STORES} in a frame")
    for store_id, seq in stores.items():
        if not is_topic(store_id):
            raise InvalidInput(f"subscribe: no store can have the id {store_id[:64]!r}")
        whole = isinstance(seq, int) and not isinstance(seq, bool) and 0 <= seq <= MAX_SEQ
        if seq is not None and not whole:
            raise InvalidInput(
                f"subscribe: last seq of store {store_id!r} is {quoted(seq)}: "
                "give a whole number, or null for only new ones"
            )
    return stores


def store_list(stores: object) -> list[str]:
    """The `stores` of an unsubscribe. Raises InvalidInput."""
    if not isinstance(stores, list) or not all(isinstance(each, str) for each in stores):
        raise InvalidInput("unsubscribe: stores must be a list of store ids")
    return stores
