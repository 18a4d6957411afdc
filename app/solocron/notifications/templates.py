"""What an email or SMS says of a notification: plain text, a subject and a body per type. Pure.

Values come from stores and hosts: they are cut short, and whatever is not printable (line ends
above all) becomes a blank, so none can add a header or a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo

from solocron.notifications.event import STORE_CLOSED, STORE_OPEN_REMINDER, STORE_OPENED
from solocron.storage.deliveries import Delivery

MAX_SUBJECT = 200
MAX_BODY = 2000
_MAX_VALUE = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9_~-]")

# The last line tells a repeat from news where there is no Message-ID, as in an SMS.
_LAST = "\n\n({{ id }})"
_OTHER = ("{{ name }}: {{ type }}", "{{ type }} of {{ name }}, {{ time }}." + _LAST)
_TEXTS: Mapping[str, tuple[str, str]] = {
    STORE_CLOSED: (
        "{{ name }} is closed",
        "{{ name }} was closed at {{ time }}"
        "{% if data.get('reason') == 'hours-ended' %}, because its opening hours ended{% endif %}."
        + _LAST,
    ),
    STORE_OPENED: ("{{ name }} is open", "{{ name }} was opened at {{ time }}." + _LAST),
    STORE_OPEN_REMINDER: (
        "Reminder: open {{ name }}",
        "{{ name }} should be open by its opening hours, but was still closed at {{ time }}."
        " Please open it." + _LAST,
    ),
}


MessageKind = Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True)
class Message:
    """A delivery as text. `id` is the same each time it is sent; `sent_at` is the time of the
    notification in the store's zone; by `kind` a chat shows it in another colour."""

    id: str
    subject: str
    body: str
    sent_at: datetime
    kind: MessageKind = "info"


class Templates:
    """Renders deliveries, in a sandbox and without HTML escaping: it is not HTML."""

    def __init__(self) -> None:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(autoescape=False, undefined=StrictUndefined)
        self._texts = {
            type_: tuple(environment.from_string(text) for text in texts)
            for type_, texts in {"": _OTHER, **_TEXTS}.items()
        }

    def render(self, delivery: Delivery) -> Message:
        """The message of a delivery; a type of a host's own gets a general text."""
        note = delivery.notification
        moment = datetime.fromtimestamp(note.created_at / 1000, _zone(delivery.timezone))
        values = {
            "id": _clean(f"{note.store_id}:{note.seq}"),
            "type": _clean(note.type),
            "name": _clean(note.data.get("name") or delivery.name),
            "time": f"{moment:%Y-%m-%d %H:%M %Z}",
            "data": {str(key): _clean(value) for key, value in note.data.items()},
        }
        subject, body = self._texts.get(note.type, self._texts[""])
        return Message(
            id=message_id(delivery),
            subject=_clean(subject.render(values), MAX_SUBJECT),
            body=body.render(values)[:MAX_BODY],
            sent_at=moment,
        )


def message_id(delivery: Delivery) -> str:
    """The Message-ID: what is sent again after a crash carries the same one, and a mail program
    shows it once. The time keeps two databases, or one that was restored, apart."""
    note = delivery.notification
    parts = (note.store_id, str(note.seq), delivery.channel, str(note.created_at))
    return f"<{'.'.join(_UNSAFE.sub(_escape, part) for part in parts)}@solocron>"


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _clean(value: object, most: int = _MAX_VALUE) -> str:
    text = "".join(each if each.isprintable() else " " for each in str(value)[:most])
    return text.strip()


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # a host's row: tell the time all the same
        return UTC
