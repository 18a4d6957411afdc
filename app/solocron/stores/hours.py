"""Opening hours: OpenStreetMap's opening_hours notation in an IANA zone. Pure; times are UTC ms.

The library reads local wall time, so an hour that daylight saving repeats counts twice and one it
leaves out never comes. It takes equal start and end (`09:00-09:00`) for a whole day, and blank
text for always open: `check_hours` refuses both, because a mistake is likelier than that meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from opening_hours import (  # type: ignore[attr-defined]  # its stubs leave the errors out
    OpeningHours,
    ParserError,
    UnknownCountryError,
)
from opening_hours import State as _State

from solocron.errors import InvalidInput

State = Literal["open", "closed", "unknown"]

MAX_HOURS_BYTES = 1000  # of UTF-8: what an index entry has room for
MAX_ZONE = 64
_EXAMPLE = "such as 'Mo-Fr 09:00-18:00; Sa 10:00-14:00; PH off'"
COUNTRY_PATTERN = r"[A-Z]{2}"
_COUNTRY = re.compile(COUNTRY_PATTERN)
_COMMENT = re.compile(r'"[^"]*"')
_WHOLE_DAY = re.compile(r"(\d\d:\d\d|[a-z]+|\([a-z]+[+-]\d\d:\d\d\))-\1(?!\w)")
_COLUMN = re.compile(r"--> \d+:(\d+)")


class HoursKey(NamedTuple):
    """What decides whether a store is open: stores that share it open and close together."""

    hours: str
    timezone: str
    country: str


def check_zone(name: str) -> ZoneInfo:
    """The zone of that IANA name. Raises InvalidInput."""
    try:
        if len(name) > MAX_ZONE or not name.isprintable():
            raise ValueError(name)
        zone = ZoneInfo(name)
        OpeningHours("24/7", timezone=zone)  # it knows real places only: not `localtime`
        return zone
    except (ValueError, TypeError, OSError, LookupError):
        raise InvalidInput(
            f"timezone {shown(name)}: give an IANA name such as Europe/Berlin"
        ) from None


def check_country(code: str) -> None:
    """'' (unknown) or the code of a country whose public holidays are known, else InvalidInput."""
    if not code:
        return
    try:
        if not _COUNTRY.fullmatch(code):
            raise ValueError(code)
        OpeningHours("24/7", country=code)
    except (ValueError, UnknownCountryError):
        raise InvalidInput(
            f"country {shown(code)}: no public holidays are known for it; give two capital letters "
            "such as DE, or leave it empty"
        ) from None


def check_hours(text: str, zone: str, country: str) -> None:
    """Raise InvalidInput unless the three can be evaluated and mean what they seem to."""
    where = check_zone(zone)
    check_country(country)
    if not text.isprintable() or not text.strip():
        raise InvalidInput(f"hours {shown(text)}: write one line of printable text, {_EXAMPLE}")
    size = len(text.encode())
    if size > MAX_HOURS_BYTES:
        raise InvalidInput(
            f"hours {shown(text)} have {size} bytes: at most {MAX_HOURS_BYTES} are kept; "
            f"shorten them, {_EXAMPLE}"
        )
    try:
        parsed = OpeningHours(text, timezone=where, country=country or None)
    except ParserError as error:
        found = _COLUMN.search(str(error))
        place = f" from character {found[1]} on" if found else ""
        raise InvalidInput(
            f"hours {shown(text)} cannot be read{place}: write OpenStreetMap opening hours, "
            f"{_EXAMPLE}"
        ) from None
    if same := _WHOLE_DAY.search(_COMMENT.sub("", str(parsed))):
        raise InvalidInput(
            f"hours {shown(text)}: {same[0]} starts and ends at the same time; write 00:00-24:00 "
            f"for the whole day, or correct the end, {_EXAMPLE}"
        )


def state_at(hours: str, zone: str, country: str, at_ms: float) -> State:
    """What the hours say at that time; `unknown` also when they cannot be evaluated.

    Hours are checked when written, so that is a row someone else wrote: it must not keep the job
    from all other stores.
    """
    try:
        where = ZoneInfo(zone)
        parsed = OpeningHours(hours, timezone=where, country=country or None)
        state, _ = parsed.state(datetime.fromtimestamp(at_ms / 1000, where))
    except (
        ParserError, UnknownCountryError, ValueError, TypeError,
        OSError, LookupError,
    ):  # fmt: skip
        return "unknown"
    if state == _State.OPEN:
        return "open"
    return "closed" if state == _State.CLOSED else "unknown"


def states(keys: Iterable[HoursKey], at_ms: float) -> dict[HoursKey, State]:
    """The state of each distinct key at one moment; about 12 us a key."""
    return {key: state_at(*key, at_ms) for key in set(keys)}


def shown(text: str) -> str:
    """A wrong value as an error shows it: quoted and escaped, cut to 100 characters."""
    return repr(text[:100]) + ("..." if len(text) > 100 else "")
