"""A store, and the one gate through which its fields come in (CSV, JSON, REST)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from solocron.errors import InvalidInput
from solocron.notifications.contact import kind_of
from solocron.stores.hours import HoursKey, check_country, check_hours, check_zone, shown

REQUIRED = ("id", "name", "timezone", "hours")
FIELDS = (*REQUIRED, "country", "is_open", "contact")

# `.` and `..` are left out: in a URL's path they mean another place.
ID_PATTERN = r"(?!\.\.?$)[A-Za-z0-9._~-]{1,64}"
MAX_NAME = 200
_ID = re.compile(ID_PATTERN)
_BOOLEANS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


class InvalidField(InvalidInput):
    """One field is wrong: `field` names it, `reason` says how and what to write instead."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Store:
    """One store. `country` and `contact` (an email address or a phone number) are '' when
    unknown; ticks and times are UTC epoch ms."""

    id: str
    name: str
    timezone: str
    hours: str
    country: str = ""
    is_open: bool = False
    notification_seq: int = 0
    updated_at: int = 0
    contact: str = ""


def is_store_id(text: str) -> bool:
    """Whether a store can have that id: 1 to 64 letters, digits and `. _ ~ -`, but not
    `.` or `..` alone."""
    return _ID.fullmatch(text) is not None


def parse_store(
    fields: Mapping[str, object], check: Callable[[str, str, str], None] = check_hours
) -> Store:
    """The store those fields describe. Raises InvalidField, and nothing else.

    `check` may be a memo of `check_hours`, for many stores that share their hours.
    """
    for name in fields:
        if name not in FIELDS:
            raise InvalidField(
                repr(name[:100])[1:-1],
                f"field {shown(name)} is not known: leave it out; a store has {', '.join(FIELDS)}",
            )
    store_id = _text(fields, "id")
    if not is_store_id(store_id):
        raise InvalidField(
            "id", f"id {shown(store_id)}: use 1 to 64 of A-Z a-z 0-9 . _ ~ -, but not . or .. alone"
        )
    name = _text(fields, "name")
    if len(name) > MAX_NAME or not name.isprintable() or not name.strip():
        raise InvalidField(
            "name", f"name {shown(name)}: use 1 to {MAX_NAME} printable characters, not all blank"
        )
    key = HoursKey(_text(fields, "hours"), _text(fields, "timezone"), _text(fields, "country", ""))
    try:
        check(*key)
    except InvalidInput as error:
        raise _which(key, error) from None
    contact = _text(fields, "contact", "")
    if contact and kind_of(contact) is None:
        raise InvalidField(
            "contact",
            f"contact {shown(contact)}: give an email address such as shop@example.com, a phone "
            "number such as +491701234567, or leave it empty",
        )
    is_open = _is_open(fields)
    return Store(store_id, name, key.timezone, key.hours, key.country, is_open, contact=contact)


def _which(key: HoursKey, error: InvalidInput) -> InvalidField:
    """The field among the three that `error` is about."""
    for field, test, value in (
        ("timezone", check_zone, key.timezone),
        ("country", check_country, key.country),
    ):
        try:
            test(value)
        except InvalidInput:
            return InvalidField(field, str(error))
    return InvalidField("hours", str(error))


def _text(fields: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if value is None:
        raise InvalidField(name, f"{name} is missing: give it as text")
    if not isinstance(value, str):
        raise InvalidField(name, f"{name} is a {type(value).__name__}: give it as text")
    return value


def _is_open(fields: Mapping[str, object]) -> bool:
    value = fields.get("is_open", False)
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise InvalidField("is_open", f"is_open is a {type(value).__name__}: give true or false")
    if value.lower() not in _BOOLEANS:
        raise InvalidField("is_open", f"is_open {shown(value)}: write true or false")
    return _BOOLEANS[value.lower()]
