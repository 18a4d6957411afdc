"""The channels of a setting such as SOLOCRON_NOTIFY_URLS: Apprise URLs, each made into something
that sends.

Email goes through smtplib and not through Apprise, which reads the URL but cannot set the
Message-ID, and mails several recipients one by one, so that a retry mails some of them twice.
All else (SMS above all) goes through Apprise, to one target a URL, for the same reason.

Nothing of a URL reaches a log, an error or the database: a channel is known by the name before
its URL (`ops=mailto://...`), else by its schema and a hash of the URL without its password.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

from solocron.errors import ConfigError
from solocron.notifications.contact import Kind, kind_of
from solocron.notifications.mail import SAMPLE, Mailbox, send_email
from solocron.notifications.templates import Message

_SETTING = "SOLOCRON_NOTIFY_URLS"
_URL = re.compile(r"(?:([a-z0-9-]{1,32})=)?([A-Za-z][A-Za-z0-9+.-]{0,31})://(.*)", re.DOTALL)
_PASSWORDS = ((r"^([^:@/?]*):[^@/?]*@", r"\1@"), (r"([?&])pass(?:word)?=[^&]*", r"\1"))
_PLACEHOLDER = re.compile(r"\{(contact|email|phone)\}")
_KINDS: dict[str, frozenset[Kind]] = {
    "contact": frozenset({"email", "phone"}),
    "email": frozenset({"email"}),
    "phone": frozenset({"phone"}),
}
_SAMPLES: dict[Kind, str] = {"email": SAMPLE, "phone": "+15005550006"}
_SHORT = 4  # parts of a URL below this length are no secrets
_MAX_ERROR = 500

Transport = Callable[[Message, str], str | None]


class SendFailed(Exception):
    """It was not sent, as far as known. The text holds no secret."""


class NoContact(Exception):
    """The store has no contact, or none that the channel reaches: there is nobody to tell."""


@dataclass(frozen=True)
class Channel:
    """One URL. `kinds` are the contacts it reaches; empty: it does not ask for one."""

    id: str
    kinds: frozenset[Kind]
    _transport: Transport = field(repr=False)
    _secrets: Sequence[str] = field(repr=False)

    def send(self, message: Message, contact: str) -> str | None:
        """Send it now, in this thread. Returns a note if it was sent but not to all. Raises
        NoContact or SendFailed."""
        if self.kinds and kind_of(contact) not in self.kinds:
            wanted = " or ".join(sorted(self.kinds))
            raise NoContact(f"the store's contact is no {wanted}" if contact else "no contact")
        try:
            note = self._transport(message, contact)
        except Exception as error:
            text = str(error) if isinstance(error, _Refused) else f"{type(error).__name__}: {error}"
            raise SendFailed(_redacted(text, self._secrets)) from None
        return _redacted(note, self._secrets) if note else None


def channels_of(
    urls: Sequence[str], *, deadline_s: float = 30.0, setting: str = _SETTING
) -> list[Channel]:
    """The channels of the URLs that `setting` has, in any order. `deadline_s` is how long sending
    one email may take. Raises ConfigError, which names a URL by its place and schema only."""
    found: dict[str, Channel] = {}
    for number, url in enumerate(urls, 1):
        channel = _channel(setting, number, url, deadline_s)
        if channel.id in found:
            raise ConfigError(
                f"{setting}: channel {channel.id} stands there twice: leave one out, or give "
                "each a name, as in ops=mailto://..."
            )
        found[channel.id] = channel
    return list(found.values())


def _channel(setting: str, number: int, url: str, deadline_s: float) -> Channel:
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError(
            f"{setting}: entry {number} is no URL: give Apprise URLs, such as mailto://..., "
            "separated by blanks"
        )
    name, schema, rest = match[1], match[2].lower(), match[3]
    where = f"{setting}: URL {number} ({schema}://)"
    kinds = _kinds(where, schema, rest)
    plugin = _instance(where, schema, rest, kinds)
    identity = name or f"{schema}-{_fingerprint(schema, rest)}"
    if schema in ("mailto", "mailtos"):
        if re.search(r"[?&](pgp|wkd)", rest):
            raise ConfigError(f"{where}: encrypted email is not supported: leave pgp and wkd out")
        box = Mailbox.of(plugin)
        secrets = [box.password] if box.password else []
        return Channel(identity, kinds, partial(send_email, box, deadline_s=deadline_s), secrets)
    if len(plugin) != 1:
        raise ConfigError(
            f"{where} has several targets or ?retry=: write one URL for each target, so that only "
            "what failed is sent again, and leave retries to the service"
        )
    transport = partial(_send_by_apprise, f"{schema}://{rest}")
    return Channel(identity, kinds, transport, _pieces(rest))


def _kinds(where: str, schema: str, rest: str) -> frozenset[Kind]:
    """The contacts that fit every placeholder of the URL."""
    names = set(_PLACEHOLDER.findall(rest))
    if not names:
        return frozenset()
    fitting = frozenset.intersection(*(_KINDS[name] for name in names))
    if schema in ("mailto", "mailtos"):
        fitting &= _KINDS["email"]
    if not fitting:
        raise ConfigError(f"{where} asks for an email address and a phone number: keep one")
    return fitting


def _instance(where: str, schema: str, rest: str, kinds: Iterable[Kind]) -> Any:
    """Apprise's object for the URL, with a sample contact; ConfigError when it knows none."""
    apprise = _apprise(where.partition(":")[0])
    with _heard():
        for sample in [_SAMPLES[kind] for kind in sorted(kinds)] or [""]:
            plugin = apprise.Apprise.instantiate(_filled(f"{schema}://{rest}", sample), _asset())
            if plugin is not None:
                return plugin
    if schema not in apprise.NotificationManager():
        raise ConfigError(f"{where}: no service has that schema: see Apprise's list of services")
    raise ConfigError(f"{where} is incomplete or wrong: see Apprise's page on that service")


def _send_by_apprise(url: str, message: Message, contact: str) -> None:
    apprise = _apprise()
    with _heard() as lines:
        plugin = apprise.Apprise.instantiate(_filled(url, contact), _asset())
        # A contact that were more than one target, or none, must reach nobody.
        sent = plugin is not None and len(plugin) == 1 and _notify(apprise, plugin, message)
    if not sent:
        raise _Refused("; ".join(lines) or "the service did not take it, and gave no reason")


def _notify(apprise: ModuleType, plugin: Any, message: Message) -> bool:
    service = apprise.Apprise(asset=_asset())
    service.add(plugin)
    return bool(
        service.notify(
            title=message.subject,
            body=message.body,
            notify_type=message.kind,
            body_format=apprise.NotifyFormat.TEXT,
        )
    )


class _Refused(Exception):
    pass


def _apprise(setting: str = _SETTING) -> ModuleType:
    try:
        import apprise  # not at the top: most deployments do without
    except ImportError:
        raise ConfigError(
            f"{setting} is set, but Apprise is missing: pip install 'solocron[notify]'"
        ) from None
    return apprise


def _asset() -> Any:
    # Without a limit of Apprise's own it sends in the calling thread, not in a pool that all
    # channels share and one hung service can fill.
    return _apprise().AppriseAsset(app_id="solocron", async_mode=False, service_timeout=0)


def _filled(url: str, contact: str) -> str:
    return _PLACEHOLDER.sub(lambda _: quote(contact, safe=""), url)


def _fingerprint(schema: str, rest: str) -> str:
    for pattern, instead in _PASSWORDS:
        rest = re.sub(pattern, instead, rest)
    return hashlib.sha256(f"{schema}://{rest}".encode()).hexdigest()[:12]


def _pieces(rest: str) -> list[str]:
    """All parts of a URL, as they stand and decoded: which are secret differs by service."""
    parts = re.split(r"[/:@?&=,#+;\s]+", rest)
    return [each for part in parts for each in (part, unquote(part)) if len(each) >= _SHORT]


def _redacted(text: str, secrets: Iterable[str]) -> str:
    """One line without the secrets, and not too long."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return " ".join(text.split())[:_MAX_ERROR]


class _Listener(logging.Filter):
    """Keeps what Apprise and its HTTP client log in a sending thread out of the logs, for it
    can hold parts of a URL; warnings are the only account it gives of a failure."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, list[str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        lines = self.lines.get(record.thread or 0)
        if lines is None:
            return True
        if record.levelno >= logging.WARNING:
            lines.append(record.getMessage())
        return False


@lru_cache(maxsize=1)
def _listener() -> _Listener:
    listener = _Listener()
    for name in ("apprise", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(listener)
    return listener


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The warnings logged in this thread meanwhile."""
    listener, thread = _listener(), threading.get_ident()
    lines = listener.lines[thread] = []
    try:
        yield lines
    finally:
        del listener.lines[thread]
