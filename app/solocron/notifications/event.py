"""The wire form of a notification: CloudEvents 1.0 in JSON. Pure.

`sequence` follows the CloudEvents sequence extension: a string that sorts as its number does.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from solocron.storage.outbox import Notification

STORE_CLOSED = "store.closed"
STORE_OPENED = "store.opened"
STORE_OPEN_REMINDER = "store.open-reminder"


def cloud_event(notification: Notification) -> bytes:
    """The notification as one CloudEvent, UTF-8 JSON."""
    moment = datetime.fromtimestamp(notification.created_at / 1000, UTC)
    event = {
        "specversion": "1.0",
        "id": f"{notification.store_id}:{notification.seq}",
        "source": f"/stores/{notification.store_id}",
        "type": notification.type,
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "sequence": f"{notification.seq:020d}",
        "datacontenttype": "application/json",
        "data": notification.data,
    }
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
