"""SOLOCRON_NOTIFY_URLS: what is accepted, what a channel is known by, what errors tell."""

from __future__ import annotations

import sys

import pytest

from solocron.errors import ConfigError
from solocron.notifications.senders import channels_of
from solocron.service import Solocron
from solocron.settings import load

MAIL = "mailto://joe:s3cret@mail.example.com/?to=a@example.com,b@example.com&cc=c@example.com"
HOOK = "json://hooks.example.com/t0ken"
SMS = "twilio://AC0123456789:t0ken@+15005550006/{phone}"


def ids(*urls: str) -> set[str]:
    return {each.id for each in channels_of(urls)}


def test_urls_stand_apart_by_blanks_or_commas_and_may_hold_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOLOCRON_NOTIFY_URLS", f" {MAIL},ops={HOOK}\n{SMS}, ")
    assert load().channel_urls == [MAIL, f"ops={HOOK}", SMS]
    assert "s3cret" not in repr(load())
    monkeypatch.setenv("SOLOCRON_NOTIFY_URLS", "")
    assert load().channel_urls == []


@pytest.mark.parametrize("value", [" ".join([HOOK] * 21), HOOK + "x" * 2000])
def test_urls_are_few_and_short(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOLOCRON_NOTIFY_URLS", value)
    with pytest.raises(ConfigError, match=r"SOLOCRON_NOTIFY_URLS.*at most 20 URLs") as caught:
        load()
    assert "t0ken" not in str(caught.value)


def test_a_channel_stays_the_same_in_another_order_and_with_another_password() -> None:
    assert ids(MAIL, HOOK) == ids(HOOK, MAIL.replace("s3cret", "new"))
    assert ids(SMS) == ids(SMS.replace("t0ken", "new"))
    assert ids(MAIL) != ids(MAIL.replace("joe", "ann"))
    assert ids(f"ops={HOOK}") == {"ops"}
    assert all(each.startswith(("mailto-", "json-")) for each in ids(MAIL, HOOK))


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([HOOK, "foo://s3cret@host"], r"URL 2 \(foo://\): no service has that schema"),
        (["s3cret"], "entry 1 is no URL"),
        (["twilio://s3cret"], r"URL 1 \(twilio://\) is incomplete or wrong"),
        (["twilio://AC0123:s3cret@+15005550006/+15005550007/+15005550008"], "several targets"),
        ([HOOK + "?retry=2"], "several targets or"),
        ([MAIL + "&pgp=encrypt"], "encrypted email is not supported"),
        (["mailto://u:s3cret@h.com/{phone}"], "an email address and a phone number"),
        ([MAIL, MAIL.replace("s3cret", "s3cret2")], "stands there twice"),
        ([f"ops={HOOK}", f"ops={MAIL}"], "channel ops stands there twice"),
    ],
)
def test_a_url_that_cannot_work_is_named_by_its_place_and_schema_only(
    urls: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        channels_of(urls)
    assert str(caught.value).startswith("SOLOCRON_NOTIFY_URLS: ")
    for secret in ("s3cret", "t0ken"):
        assert secret not in str(caught.value) + caplog.text


def test_without_apprise_the_error_says_what_to_install(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setitem(sys.modules, "apprise", None)
    Solocron.from_env()
    environment.setenv("SOLOCRON_NOTIFY_URLS", MAIL)
    with pytest.raises(ConfigError, match=r"pip install 'solocron\[notify\]'"):
        Solocron.from_env()
