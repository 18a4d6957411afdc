"""The wire form of a notification: CloudEvents 1.0 in JSON. Pure.

`sequence` follows the CloudEvents sequence extension: a string that sorts as its number does. So
does `feedsequence`, the number in the feed, of one that was read there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from solocron.storage.outbox import Notification

STORE_CLOSED = "store.closed"
STORE_OPENED = "store.opened"
STORE_OPEN_REMINDER = "store.open-reminder"

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


def cloud_event(notification: Notification) -> bytes:
    """The notification as one CloudEvent, UTF-8 JSON."""
    moment = _EPOCH + timedelta(milliseconds=notification.created_at)
    event: CloudEvent = {
        "specversion": "1.0",
        "id": f"{notification.store_id}:{notification.seq}",
        "source": f"/stores/{notification.store_id}",
        "type": notification.type,
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "sequence": f"{notification.seq:020d}",
        "datacontenttype": "application/json",
        "data": notification.data,
    }
    if notification.feed is not None:
        event["feedsequence"] = f"{notification.feed:020d}"
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
