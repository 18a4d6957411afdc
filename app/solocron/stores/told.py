"""What a store's notifications say: the `data` of each type. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from solocron.notifications.event import STORE_CLOSED, STORE_OPEN_REMINDER, STORE_OPENED


class HoursEnded(TypedDict):
    """The store was closed at `tick` because its opening hours had ended."""

    name: str
    reason: Literal["hours-ended"]
    tick: str


class AskedFor(TypedDict):
    """The store was opened, or closed, by a request."""

    name: str
    reason: Literal["api"]


class HoursBegan(TypedDict):
    """The store was closed at `tick` although its opening hours had begun."""

    name: str
    tick: str


Data = HoursEnded | AskedFor | HoursBegan

DATA: Mapping[str, Any] = {
    STORE_CLOSED: HoursEnded | AskedFor,
    STORE_OPENED: AskedFor,
    STORE_OPEN_REMINDER: HoursBegan,
}
