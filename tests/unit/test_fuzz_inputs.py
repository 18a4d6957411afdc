"""Made-up inputs: each is used or refused with the error of its part, and in little time."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from solocron.clock import SystemClock
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError, InvalidInput
from solocron.stores.hours import check_hours, state_at
from solocron.stores.importing import read
from solocron.stores.model import FIELDS, InvalidField, Store, is_store_id, parse_store
from solocron.stores.reading import BadRow
from solocron.web.auth import Authenticator, Forbidden, Unauthenticated
from solocron.web.frames import parse, positions
from solocron.web.guard import basic_password, bearer, check_host, check_origin, quoted

SECRET = "0123456789abcdef" * 4
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia"]
)
MOMENTS = st.integers(0, 4_102_444_800_000)  # up to the year 2100
quick = settings(
    derandomize=True, deadline=None, database=None, max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """That it takes no more processor time than that: a generous bound, of something that would
    hold up the event loop otherwise."""
    began = time.thread_time()
    yield
    assert time.thread_time() - began < seconds


# -- cron expressions ------------------------------------------------------------------------

ATOMS = st.sampled_from([
    "*", "*/2", "*/31", "*/32", "*/99", "0", "1", "2,4", "5-7", "7", "23", "29", "30", "31", "59",
    "60", "L", "LW", "L/2", "1L", "5L", "1#5", "MON#5", "FRI", "FEB", "1-1/3", "*,1", "", "\u00b2",
    "\u00b2L", "#", "-", "1-", "9" * 40,
])  # fmt: skip
EXPRESSIONS = st.lists(ATOMS, min_size=4, max_size=7).map(" ".join) | st.text(max_size=220)


@quick
@given(expression=EXPRESSIONS, zone=ZONES, now=MOMENTS)
@example("0 0 31 2 *", "UTC", 0)
@example("0 0 30 2 *", "Europe/Berlin", 0)
@example("0 0 */32 2 MON#5", "UTC", 0)
@example("0 0 29 2 */8", "UTC", 4_000_000_000_000)  # the 29th of February on a Sunday
@example("* * * * *," * 30, "UTC", 0)
def test_a_cron_expression_has_ticks_or_is_refused(expression: str, zone: str, now: int) -> None:
    with within(0.5):
        try:
            calendar = Calendar(expression, zone)
        except ConfigError as error:
            assert len(str(error)) < 700
            return
        following = calendar.next_after(now)
        latest = calendar.latest_at(following)
        assert following > now
        assert latest is None or latest == following
        assert following in calendar.between(now, following, 5)


@quick
@given(
    zone=st.text(max_size=80)
    | st.sampled_from(["..", "/etc/passwd", "../UTC", "UTC\0", "a" * 9000])
)
def test_a_time_zone_is_one_or_is_refused(zone: str) -> None:
    try:
        Calendar("* * * * *", zone)
    except ConfigError as error:
        assert len(str(error)) < 400


# -- stores ----------------------------------------------------------------------------------

HOURS = st.lists(
    st.sampled_from([
        "Mo", "Tu-Su", "Su[-1]", "Mo[5] +400 days", "Feb 29", "Jan 1-Feb 30", "easter +9999 days",
        "easter -300 days", "PH", "SH", "PH +1 day", "week 53", "week 1-53/2", "2024", "1900-9999",
        "2024-2030/3", "2024+", "99999", "sunrise-sunset", "(sunset-23:59)-dusk", "10:00-26:00",
        "22:00-48:00", "08:00+", "10:00-16:00/00:01", "24/7", "off", "unknown", '"x"', '"', "||",
        ";", ",", "-", "+", "/", "[", "]", "(", " ", "99:99", "\u00e4", "\0", "\ud800",
    ]), max_size=14,
).map(" ".join) | st.text(max_size=60)  # fmt: skip
COUNTRIES = st.sampled_from(["", "DE", "US", "XX", "de", "D\u00c9"]) | st.text(max_size=3)


@quick
@given(hours=HOURS, zone=ZONES | st.text(max_size=70), country=COUNTRIES, now=MOMENTS)
@example("Mo 10:00-12:00;" * 1000, "UTC", "", 0)
@example('"' * 999, "UTC", "", 0)
@example("(" * 999, "UTC", "", 0)
@example("1-" * 499, "UTC", "", 0)
@example("Mo," * 300 + "Mo 10:00-12:00", "UTC", "", 0)
@example("2024-9999 week 53 Mo[5] +400 days 10:00-26:00", "Pacific/Apia", "DE", 4 * 10**12)
def test_hours_are_evaluated_or_refused(hours: str, zone: str, country: str, now: int) -> None:
    with within(0.5):
        try:
            check_hours(hours, zone, country)
        except InvalidInput as error:
            assert len(str(error)) < 1500
            return
        assert state_at(hours, zone, country, now) in ("open", "closed", "unknown")


@quick
@given(hours=HOURS, zone=st.text(max_size=70), country=COUNTRIES, now=MOMENTS)
def test_hours_that_nobody_checked_are_unknown_at_worst(
    hours: str, zone: str, country: str, now: int
) -> None:
    assert state_at(hours, zone, country, now) in ("open", "closed", "unknown")


FIELD_VALUES = JSON | st.sampled_from(["1", "Mitte", "Europe/Berlin", "24/7", "DE", "a@b.example"])


@quick
@given(st.dictionaries(st.sampled_from([*FIELDS, "x"]) | st.text(), FIELD_VALUES, max_size=9))
def test_fields_are_a_store_or_name_the_wrong_one(fields: dict[str, Any]) -> None:
    try:
        store = parse_store(fields)
    except InvalidField as error:
        assert error.reason and len(error.reason) < 1500
    else:
        assert isinstance(store, Store) and is_store_id(store.id)


@pytest.mark.parametrize("store_id", ["", ".", "..", "a/b", "a b", "x" * 65, "1\n", "\u00e4", "\0"])
def test_an_id_that_no_path_can_carry_is_none(store_id: str) -> None:
    assert not is_store_id(store_id)
    assert is_store_id("...") and is_store_id(".a") and is_store_id("x" * 64)


CELLS = st.sampled_from(["id", "name", "timezone", "hours", "1", "UTC", "24/7", '"', "a\nb", "\0"])
FILES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.lists(CELLS, max_size=5).map(",".join), max_size=8).map("\n".join).map(str.encode),
    st.lists(JSON, max_size=6).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    JSON.map(lambda value: json.dumps([value]).encode()),
    st.text(alphabet='[]{},:" \n0', max_size=60).map(str.encode),
    st.integers(1, 20_000).map(lambda depth: b"[" * depth),
    st.integers(1, 3_000).map(lambda depth: b'{"id":' * depth),
)


@quick
@given(content=FILES)
def test_a_file_has_rows_or_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stores"
    path.write_bytes(content)
    with within(0.5):
        try:
            rows = list(read(path))
        except InvalidInput as error:
            assert len(str(error)) < 1000
            return
    assert all(isinstance(each, Store | BadRow) for each in rows)


# -- tokens and headers ----------------------------------------------------------------------


def segment(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


GOOD = jwt.encode({"aud": "solocron", "exp": 4_000_000_000, "stores": "*"}, SECRET)
ALGORITHMS = st.sampled_from(["HS256", "HS512", "none", "None", "NONE", "RS256", "ES256", "", None])
HEADERS = JSON | st.builds(
    lambda algorithm, more: {**more, "alg": algorithm},
    ALGORITHMS,
    st.dictionaries(st.sampled_from(["kid", "jwk", "jku", "x5u", "crit", "b64", "typ"]), JSON),
)
TOKENS = st.one_of(
    st.builds(
        lambda head, claims, end: f"{segment(head)}.{segment(claims)}.{end}",
        HEADERS | st.binary(), JSON | st.binary(), st.text(max_size=50) | st.just(""),
    ),
    st.builds(  # one character of a good one is another
        lambda place, char: GOOD[:place] + char + GOOD[place + 1 :],
        st.integers(0, GOOD.rindex(".")), st.sampled_from("!-_.= \0\u00e4"),
    ).filter(lambda token: token != GOOD),
)  # fmt: skip


@quick
@given(token=TOKENS)
def test_a_token_that_we_did_not_sign_is_refused(token: str) -> None:
    with within(0.5), pytest.raises(Unauthenticated) as caught:
        Authenticator(clock=SystemClock(), secret=SECRET).authenticate(token)
    assert SECRET not in str(caught.value) and len(str(caught.value)) < 300


@quick
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=80),
    kind=st.sampled_from(["Bearer ", "bearer", "Basic ", "basic\t", ""]),
)
def test_any_header_is_read_without_an_error(text: str, kind: str) -> None:
    request = make_mocked_request("GET", "/", {"Authorization": kind + text, "Origin": text,
                                               "Host": text})  # fmt: skip
    for value in (bearer(request), basic_password(request)):
        assert value is None or isinstance(value, str)
    for check in (lambda: check_origin(request, frozenset()), lambda: check_host(request)):
        try:
            check()
        except Forbidden as error:
            assert len(str(error)) < 700


# -- frames ----------------------------------------------------------------------------------


@quick
@given(text=st.text(max_size=60) | JSON.map(json.dumps), value=JSON)
def test_a_frame_is_used_or_refused(text: str, value: Any) -> None:
    try:
        frame = parse(text)
    except InvalidInput as error:
        assert len(str(error)) < 700
    else:
        assert isinstance(frame, dict)
    try:
        positions(value)
    except InvalidInput as error:
        assert len(str(error)) < 700


def test_nesting_of_any_depth_is_refused_in_words() -> None:
    """What the JSON parser just takes is too deep for a text of it."""
    for depth in range(900, 1010, 3):
        for text in (
            '{"1":' + "[" * depth + "]" * depth + "}",
            '{"x":' * depth + "1" + "}" * depth,
        ):
            with pytest.raises(InvalidInput):
                positions(parse(text))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "a list"
