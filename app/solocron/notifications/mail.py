"""Email over SMTP, for a mailbox that Apprise read from a `mailto(s)://` URL.

A message goes to all of its recipients in one SMTP transaction: when one of them is put off, all
are, and the retry mails nobody twice. However slowly a server talks, it is cut off in the end.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, formataddr
from typing import Any, Self

from solocron.notifications.templates import Message

SAMPLE = "contact@solocron.invalid"  # stands in a mailbox for the contact of a store
_REPLY_S = 10.0
_POLICY = SMTP.clone(cte_type="7bit")  # needs no extension of the server


@dataclass(frozen=True)
class Mailbox:
    """A server and the addresses of a message, each as (name or '', address).

    `security` is `starttls`, `ssl` or `insecure`.
    """

    host: str
    port: int
    security: str
    verify: bool
    user: str | None
    password: str | None = field(repr=False)
    sender: tuple[str, str]
    to: Sequence[tuple[str, str]]
    cc: Sequence[tuple[str, str]]
    bcc: Sequence[tuple[str, str]]
    reply_to: Sequence[tuple[str, str]]
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, plugin: Any) -> Self:
        """The mailbox of Apprise's `NotifyEmail`."""

        def named(addresses: Any) -> list[tuple[str, str]]:
            return [(plugin.names.get(each) or "", each) for each in sorted(addresses)]

        return cls(
            host=plugin.smtp_host, port=plugin.port, security=str(plugin.secure_mode),
            verify=plugin.verify_certificate, user=plugin.user, password=plugin.password,
            sender=(plugin.from_addr[0] or "", plugin.from_addr[1]),
            to=[(name or "", address) for name, address in plugin.targets],
            cc=named(plugin.cc), bcc=named(plugin.bcc), reply_to=named(plugin.reply_to),
            headers=dict(plugin.headers),
        )  # fmt: skip


def send_email(box: Mailbox, message: Message, contact: str, deadline_s: float) -> str | None:
    """Send it, with `contact` in the place of `SAMPLE`. Returns a note when a recipient does not
    exist. Raises OSError, SMTPException or ValueError when nobody was sent it."""
    email = _email(box, message, contact)
    recipients = [_filled(each, contact)[1] for each in (*box.to, *box.cc, *box.bcc)]
    with _session(box, deadline_s) as smtp:
        return _transfer(smtp, box.sender[1], recipients, email.as_bytes())


def _email(box: Mailbox, message: Message, contact: str) -> EmailMessage:
    email = EmailMessage(_POLICY)
    email["From"] = formataddr(box.sender)
    for name, addresses in (("To", box.to), ("Cc", box.cc), ("Reply-To", box.reply_to)):
        if addresses:
            email[name] = ", ".join(formataddr(_filled(each, contact)) for each in addresses)
    email["Subject"] = message.subject
    email["Date"] = format_datetime(message.sent_at)
    email["Message-ID"] = message.id
    email["Auto-Submitted"] = "auto-generated"
    email.set_content(message.body)
    for name, value in box.headers.items():
        if name not in email:
            email[name] = value
    return email


def _filled(address: tuple[str, str], contact: str) -> tuple[str, str]:
    return ("", contact) if address[1] == SAMPLE else address


def _transfer(
    smtp: smtplib.SMTP, sender: str, recipients: Sequence[str], content: bytes
) -> str | None:
    smtp.ehlo_or_helo_if_needed()
    code, reply = smtp.mail(sender)
    if code != 250:
        raise smtplib.SMTPSenderRefused(code, reply, sender)
    refused: dict[str, tuple[int, bytes]] = {}
    for each in recipients:
        code, reply = smtp.rcpt(each)
        if code >= 500:
            refused[each] = (code, reply)
        elif code not in (250, 251):
            raise smtplib.SMTPResponseException(code, reply)  # later, for all of them
    if len(refused) == len(recipients):
        raise smtplib.SMTPRecipientsRefused(refused)
    code, reply = smtp.data(content)
    if code != 250:
        raise smtplib.SMTPDataError(code, reply)
    return f"refused for some: {refused}" if refused else None


@contextmanager
def _session(box: Mailbox, deadline_s: float) -> Iterator[smtplib.SMTP]:
    limits = {"timeout": min(_REPLY_S, deadline_s), "deadline_s": deadline_s}
    if box.security == "ssl":
        smtp: _Smtp = _SmtpOverTls(box.host, box.port, context=_tls(box), **limits)
    else:
        smtp = _Smtp(box.host, box.port, **limits)
    try:
        if box.security == "starttls":
            smtp.starttls(context=_tls(box))
        if box.user and box.password:
            smtp.login(box.user, box.password)
        yield smtp
        with suppress(OSError, smtplib.SMTPException):  # it was sent, whatever comes of this
            smtp.quit()
    finally:
        smtp.close()


def _tls(box: Mailbox) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not box.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Smtp(smtplib.SMTP):
    """Cut off when the deadline has passed: each reply has its timeout, but a server that sends a
    character now and then would never meet it."""

    def __init__(self, *args: Any, deadline_s: float, **options: Any) -> None:
        self._timer = threading.Timer(deadline_s, self._cut)
        self._timer.daemon = True
        self._timer.start()
        try:
            super().__init__(*args, **options)
        except BaseException:
            self._timer.cancel()
            raise

    def _cut(self) -> None:
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        super().close()


class _SmtpOverTls(_Smtp, smtplib.SMTP_SSL):
    pass
