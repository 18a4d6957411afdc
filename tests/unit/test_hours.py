"""Opening hours: what they say at a moment, and which of them are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solocron.errors import InvalidInput
from solocron.stores.hours import HoursKey, check_hours, check_zone, state_at, states


def ms(utc: str) -> int:
    return int(datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("hours", "zone", "utc", "state"),
    [
        ("Mo-Fr 09:00-18:00", "UTC", "2026-05-04T09:00", "open"),
        ("Mo-Fr 09:00-18:00", "UTC", "2026-05-04T08:59:59.999", "closed"),
        ("Mo-Fr 09:00-18:00", "UTC", "2026-05-04T18:00", "closed"),
        ("Mo-Fr 09:00-18:00", "Asia/Kathmandu", "2026-05-04T03:15", "open"),  # +05:45
        ("Mo-Fr 09:00-18:00", "Asia/Kathmandu", "2026-05-04T03:14", "closed"),
        ("Mo-Fr 09:00-18:00", "America/New_York", "2026-05-04T12:59", "closed"),
        ("Mo-Fr 09:00-18:00", "America/New_York", "2026-05-04T13:00", "open"),
        ("Mo 09:00-18:00", "Pacific/Auckland", "2026-05-03T22:00", "open"),  # Monday there
        ("Fr 22:00-02:00", "Europe/Berlin", "2026-05-08T23:30", "open"),  # Saturday 01:30
        ("24/7", "UTC", "2026-01-01T00:00", "open"),
        ("off", "UTC", "2026-01-01T00:00", "closed"),
        ('Mo 09:00-18:00 unknown "on call"', "UTC", "2026-05-04T10:00", "unknown"),
    ],
)
def test_hours_are_read_in_the_stores_own_zone(hours: str, zone: str, utc: str, state: str) -> None:
    check_hours(hours, zone, "")
    assert state_at(hours, zone, "", ms(utc)) == state


@pytest.mark.parametrize(
    ("hours", "utc", "state"),
    [  # 2026-04-24 00:00 does not exist in Cairo: 23:59:59 is followed by 01:00, at 22:00 UTC
        ("Fr 00:00-06:00", "2026-04-23T21:59:59", "closed"),
        ("Fr 00:00-06:00", "2026-04-23T22:00", "open"),
        ("Th 20:00-24:00", "2026-04-23T21:59:59", "open"),
        ("Th 20:00-24:00", "2026-04-23T22:00", "closed"),
        ("Fr 00:00-00:30", "2026-04-23T22:00", "closed"),  # the half hour never comes
        ("Th 22:00-26:00", "2026-04-23T22:30", "open"),
        ("Th 22:00-26:00", "2026-04-23T23:00", "closed"),
    ],
)
def test_a_midnight_that_daylight_saving_leaves_out(hours: str, utc: str, state: str) -> None:
    assert state_at(hours, "Africa/Cairo", "", ms(utc)) == state


@pytest.mark.parametrize("utc", ["2026-10-25T00:15", "2026-10-25T01:15"])
def test_an_hour_that_comes_twice_counts_twice(utc: str) -> None:
    assert state_at("02:00-02:30", "Europe/Berlin", "", ms(utc)) == "open"


def test_public_holidays_are_those_of_the_country() -> None:
    hours, labour_day, bastille_day = "Mo-Su 10:00-18:00; PH off", "2026-05-01", "2026-07-14"

    def at_noon(day: str, country: str) -> str:
        return state_at(hours, "Europe/Paris", country, ms(f"{day}T10:00"))

    assert [at_noon(labour_day, each) for each in ("DE", "FR", "")] == ["closed", "closed", "open"]
    assert [at_noon(bastille_day, each) for each in ("DE", "FR", "")] == ["open", "closed", "open"]


@pytest.mark.parametrize(
    "hours",
    [
        "Mo-Fr 09:00-09:00",
        "9:00-09:00",
        "Mo 08:00-12:00, 13:00 - 13:00",
        "00:00-00:00",
        "sunrise-sunrise",
        "Mo (sunset-01:00)-(sunset-01:00)",
    ],
)
def test_equal_start_and_end_is_refused_because_it_means_a_whole_day(hours: str) -> None:
    with pytest.raises(InvalidInput, match=r"write 00:00-24:00"):
        check_hours(hours, "UTC", "")


@pytest.mark.parametrize(
    "hours",
    ["00:00-24:00", "Mo-Fr 09:00-17:00", 'Mo 10:00-16:00 "or 09:00-09:00"', "sunrise-sunset",
     "09:00-33:00", "week 01-53 Mo 08:00-12:00", "Jan 01-Jan 01 10:00-12:00"],
)  # fmt: skip
def test_hours_that_only_look_like_it_pass(hours: str) -> None:
    check_hours(hours, "UTC", "")


@pytest.mark.parametrize(
    ("hours", "zone", "country", "message"),
    [
        ("garbage", "UTC", "", "hours 'garbage' cannot be read from character 1"),
        ("Mo-Fr 09.00-18.00", "UTC", "", "from character 7 on: .*Mo-Fr 09:00-18:00"),
        ("", "UTC", "", "hours ''"),
        ("   ", "UTC", "", "hours '   '"),  # the library takes it for always open
        ("Mo 10:00-12:00\nTu 10:00-12:00", "UTC", "", "one line"),
        ('Mo 10:00-12:00 "\x00"', "UTC", "", "printable"),
        ('Mo 10:00-12:00 "\ud800"', "UTC", "", "printable"),
        ('Mo 10:00-12:00 "' + "x" * 985 + '"', "UTC", "", "1002 bytes: at most 1000"),
        ('Mo 10:00-12:00 "' + "休" * 400 + '"', "UTC", "", "1217 bytes"),
        ("24/7", "Europe/Atlantis", "", "timezone 'Europe/Atlantis': .*Europe/Berlin"),
        ("24/7", "", "", "timezone ''"),
        ("24/7", "../../etc/passwd", "", "timezone"),
        ("24/7", "Europe", "", "timezone"),
        ("24/7", "localtime", "", "timezone"),
        ("24/7", "x" * 5000, "", "timezone 'x{100}'[.]{3}:"),
        ("24/7", "UTC", "de", "country 'de': .*DE"),
        ("24/7", "UTC", "XX", "country 'XX'"),
        ("24/7", "UTC", "DEU", "country 'DEU'"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(
    hours: str, zone: str, country: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        check_hours(hours, zone, country)
    assert len(str(caught.value)) < 400


def test_a_thousand_bytes_are_still_taken() -> None:
    check_hours('Mo 10:00-12:00 "' + "x" * 983 + '"', "UTC", "")


@pytest.mark.parametrize(
    "key", [("garbage", "UTC", ""), ("24/7", "Nowhere", ""), ("24/7", "UTC", "XX"),
            ("24/7", "localtime", ""), ("24/7", "..", "")],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_unknown(key: tuple[str, str, str]) -> None:
    assert state_at(*key, ms("2026-05-04T10:00")) == "unknown"


def test_each_distinct_key_is_evaluated_once() -> None:
    keys = [HoursKey("24/7", "UTC", ""), HoursKey("off", "UTC", ""), HoursKey("24/7", "UTC", "")]
    assert states(keys, 0) == {keys[0]: "open", keys[1]: "closed"}


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["Europe/Berlin", "Africa/Cairo", "America/Havana", "Australia/Lord_Howe"]),
    st.integers(1_735_689_600_000, 1_830_297_600_000),
    st.integers(0, 23),
    st.integers(1, 24),
)
def test_daily_hours_agree_with_the_wall_clock(zone: str, at: int, start: int, length: int) -> None:
    end = min(start + length, 24)
    hour = datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).hour
    expected = "open" if start <= hour < end else "closed"
    assert state_at(f"{start:02}:00-{end:02}:00", zone, "", at) == expected


def test_a_zone_is_given_back() -> None:
    assert check_zone("Africa/Cairo") == ZoneInfo("Africa/Cairo")
