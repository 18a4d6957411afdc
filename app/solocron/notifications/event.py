"""The wire form of a notification: CloudEvents 1.0 in JSON. Pure.

`sequence` follows the CloudEvents sequence extension: a string that sorts as its number does. So
does `feedsequence`, the number in the feed, of one that was read there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NotRequired

from pydantic_core import to_json
from typing_extensions import TypedDict

from solocron.errors import InvalidInput
from solocron.storage.outbox import Notification

STORE_CLOSED = "store.closed"
STORE_OPENED = "store.opened"
STORE_OPEN_REMINDER = "store.open-reminder"

OURS = "store."  # what the types of our own begin with, those to come too
TYPE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_DATA = 16 * 1024
_TYPE = re.compile(TYPE_PATTERN)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CloudEvent(TypedDict):
    """A notification. `sequence` is its seq in its store, and `feedsequence` its number among those
    of all stores, where those are watched; both are padded with zeros."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    time: str
    sequence: str
    datacontenttype: Literal["application/json"]
    data: Mapping[str, Any]
    feedsequence: NotRequired[str]


def check_own_event(type_: str, data: Mapping[str, Any]) -> None:
    """Raise InvalidInput unless a host's own notification can have that type and data."""
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
        raise InvalidInput(
            f"type {repr(type_)[:100]}: use 1 to 64 of A-Z a-z 0-9 . _ and -, such as order.placed"
        )
    if type_.startswith(OURS):
        raise InvalidInput(
            f"type {type_!r}: what begins with {OURS!r} is solocron's own; use another, such as "
            "shop.renamed"
        )
    if not isinstance(data, Mapping):
        raise InvalidInput(f"data of {type_!r} is a {type(data).__name__}: give a mapping")
    try:
        size = len(json.dumps(dict(data), ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"data of {type_!r} is no JSON: {str(error)[:200]}") from None
    if size > MAX_DATA:
        raise InvalidInput(
            f"data of {type_!r} has {size} bytes as JSON: at most {MAX_DATA} are sent; refer to "
            "what is larger by its URL"
        )


def cloud_event(notification: Notification) -> bytes:
    """The notification as one CloudEvent, UTF-8 JSON."""
    event: CloudEvent = {
        "specversion": "1.0",
        "id": f"{notification.store_id}:{notification.seq}",
        "source": f"/stores/{notification.store_id}",
        "type": notification.type,
        "time": _time(notification.created_at),
        "sequence": f"{notification.seq:020d}",
        "datacontenttype": "application/json",
        "data": notification.data,
    }
    if notification.feed is not None:
        event["feedsequence"] = f"{notification.feed:020d}"
    return to_json(event)


@lru_cache(maxsize=128)  # those of a batch have one
def _time(ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
