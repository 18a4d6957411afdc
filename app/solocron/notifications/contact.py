"""Whom a store's own notifications go to: an email address, or a phone number. Pure."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["email", "phone"]

MAX_CONTACT = 320

_PHONE = re.compile(r"\+[1-9][0-9]{6,14}")  # E.164
_ATOM = r"[A-Za-z0-9!#$&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(rf"(?=.{{1,64}}@){_ATOM}(?:\.{_ATOM})*@(?=.{{1,255}}$){_LABEL}(?:\.{_LABEL})+")


def kind_of(contact: str) -> Kind | None:
    """What sort of contact it is, None if it is neither. Nothing that passes can break out of a
    header or, escaped, of a URL."""
    if _PHONE.fullmatch(contact):
        return "phone"
    return "email" if len(contact) <= MAX_CONTACT and _EMAIL.fullmatch(contact) else None
