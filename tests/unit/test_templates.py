"""What an email or SMS says, and whom a contact can name."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron.notifications.channels import Policy
from solocron.notifications.contact import kind_of
from solocron.notifications.templates import MAX_BODY, MAX_SUBJECT, Templates, message_id
from solocron.storage.deliveries import Delivery
from solocron.storage.outbox import Notification

NOON = 1_777_024_800_000  # Friday 2026-04-24 10:00 UTC
TEMPLATES = Templates()


def delivery(
    type_: str = "store.closed", *, store: str = "42", zone: str = "Europe/Berlin", **data: Any
) -> Delivery:
    note = Notification(store, 17, type_, {"name": "Corner", **data}, NOON)
    return Delivery("ops", 1, "w", note, "Corner", zone, "")


@pytest.mark.parametrize(
    ("given", "subject", "body"),
    [
        (
            delivery(reason="hours-ended"),
            "Corner is closed",
            "Corner was closed at 2026-04-24 12:00 CEST, because its opening hours ended.",
        ),
        (
            delivery(reason="api"),
            "Corner is closed",
            "Corner was closed at 2026-04-24 12:00 CEST.",
        ),
        (
            delivery("store.opened", zone="America/New_York"),
            "Corner is open",
            "Corner was opened at 2026-04-24 06:00 EDT.",
        ),
        (
            delivery("store.open-reminder", zone="Africa/Cairo"),
            "Reminder: open Corner",
            "Corner should be open by its opening hours, but was still closed at "
            "2026-04-24 13:00 EEST. Please open it.",
        ),
        (
            delivery("till.empty", zone="Mars/Base"),
            "Corner: till.empty",
            "till.empty of Corner, 2026-04-24 10:00 UTC.",
        ),
    ],
)
def test_each_type_has_its_text_in_the_stores_own_time(
    given: Delivery, subject: str, body: str
) -> None:
    message = TEMPLATES.render(given)
    assert (message.subject, message.body) == (subject, f"{body}\n\n(42:17)")


def test_what_looks_like_a_template_is_text() -> None:
    assert TEMPLATES.render(delivery(name="{{ 7 * 7 }}<b>")).subject == "{{ 7 * 7 }}<b> is closed"


@given(st.text(), st.text(), st.text(), st.dictionaries(st.text(), st.text()))
def test_no_value_breaks_out_of_its_line(
    name: str, store: str, type_: str, data: dict[str, str]
) -> None:
    message = TEMPLATES.render(delivery(type_, store=store, **{**data, "name": name}))
    assert message.subject.isprintable() and len(message.subject) <= MAX_SUBJECT
    assert len(message.body) <= MAX_BODY
    assert len(message.body.splitlines()) <= 3
    email = EmailMessage(policy.SMTP)
    email["Subject"], email["Message-ID"] = message.subject, message.id
    again = message_from_bytes(email.as_bytes(), policy=policy.default)
    assert sorted(again.keys()) == ["Message-ID", "Subject"]
    assert again["Message-ID"].strip() == message.id  # a long one stands on a line of its own


def test_a_message_id_is_the_same_each_time_and_nobody_elses() -> None:
    assert message_id(delivery()) == f"<42.17.ops.{NOON}@solocron>"
    ids = {message_id(delivery(store=each)) for each in ("4.2", "42", "4%2E2", "4 2", "ä")}
    assert len(ids) == 5
    assert all(each.isascii() and " " not in each for each in ids)


@pytest.mark.parametrize(
    ("contact", "kind"),
    [
        ("shop@example.com", "email"),
        ("o'neil+a_b.c@sub.example-1.org", "email"),
        ("+491701234567", "phone"),
        ("+1234567", "phone"),
        ("+123456", None),
        ("+1234567890123456", None),
        ("+0123456789", None),
        ("01701234567", None),
        ("", None),
        ("shop", None),
        ("shop@localhost", None),
        ("a@b@example.com", None),
        ("a..b@example.com", None),
        (".a@example.com", None),
        ("a@-example.com", None),
        ("a@example.com\n", None),
        ("a\nBcc:x@example.com", None),
        ("a%0d%0aBcc@example.com", None),
        ("a@example.com,b@example.com", None),
        ("Shop <a@example.com>", None),
        ("ä@example.com", None),
        ("+49170123456٧", None),
        ("a" * 65 + "@example.com", None),
        ("a@" + "b." * 130 + "com", None),
    ],
)
def test_a_contact_is_an_email_address_or_a_phone_number(contact: str, kind: str | None) -> None:
    assert kind_of(contact) == kind


def test_pauses_grow_up_to_an_hour_and_are_jittered() -> None:
    pauses = [Policy().delay_ms(attempt, 0.5) for attempt in range(1, 9)]
    assert pauses == [10_000, 30_000, 90_000, 270_000, 810_000, 2_430_000, 3_600_000, 3_600_000]
    assert (Policy().delay_ms(1, 0), Policy().delay_ms(1, 1)) == (8_000, 12_000)
