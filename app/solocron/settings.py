"""Settings from the environment. A wrong value names the variable, the value and the remedy.

Values that can carry a secret are kept as `SecretStr`: they show in no log, repr or error. A value
that is a part's own business (a URL, a cron expression) is judged by that part, here and now, so
that all that is wrong is told at once. Each such value can come from a file: see `secret_files`.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from annotated_types import Ge, Le, MaxLen
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from solocron.cron.job import check_ping
from solocron.cron.ticks import Calendar
from solocron.errors import ConfigError
from solocron.locks.address import as_cluster, check_url
from solocron.secret_files import SUFFIX, read_secrets
from solocron.storage.engine import parse_url
from solocron.stores.table import StoreTable, parse_table
from solocron.web.auth import check_secret

_PREFIX = "SOLOCRON_"
_MAX_VALUE = 16 * 1024
_HOST_NAME = re.compile(r"[\w.-]{1,255}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_WEEK_S = 7 * 86_400
_CENTURY_S = 36_525 * 86_400
_SERVICE_LINKS = (
    "; Kubernetes sets such variables for a Service of that name: "
    "switch them off with enableServiceLinks: false in the pod's spec"
)
NO_DATABASE = "none"
NO_JOB = "off"
_NEARLY_NONE = ("none", "no", "off", "false", "0", "null", "nil", "-", "", "redis")
_MAX_URLS = 20
_MAX_URL = 2000
# A comma divides only where a URL follows: it also stands in URLs. The name before one is optional.
_BETWEEN_URLS = re.compile(r"\s+|,\s*(?=(?:[a-z0-9-]{1,32}=)?[A-Za-z][A-Za-z0-9+.-]*://)")


class Settings(BaseSettings):
    """What a deployment can set. Times in s unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="SOLOCRON_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    """Where Redis is: `redis://`, `rediss://`, `unix://`, or one of [several
    servers](#redis-beyond-one-server); comes before host, port and password."""
    redis_host: str = Field(default="127.0.0.1", validation_alias="REDIS_HOST")
    """Where Redis is."""
    redis_port: int = Field(default=6379, validation_alias="REDIS_PORT", ge=1, le=65535)
    """The port of Redis."""
    redis_password: SecretStr | None = Field(default=None, validation_alias="REDIS_PASSWORD")
    """The password of Redis."""
    redis_cluster: bool = Field(default=False, validation_alias="REDIS_CLUSTER")
    """`1`: the Redis that is named is a node of a cluster."""
    redis_deadline: float = Field(default=1.0, ge=0.05, le=60)
    """After how long Redis counts as down."""
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///solocron.db"), validation_alias="DATABASE_URL"
    )
    """`sqlite:///file`, `postgresql://user:password@host/name` or `none`: jobs with Redis alone."""
    app: str = Field(default="", max_length=200)
    """For the command line: `module:name` of your own `Solocron`, such as `report:cron`, whose jobs
    it then knows; the module is looked for in the working directory, too."""
    environment: str = ""
    """Is added to lock keys and channels: `cron:store-auto-close:production`. Services that share a
    database of a Redis need one each."""
    timezone: str = "UTC"
    """IANA zone of the schedules; stores have their own."""
    host: str = "127.0.0.1"
    """Where to serve; other than loopback only with tokens."""
    port: int = Field(default=8080, ge=0, le=65535)
    """The port to serve; `0`: any that is free."""
    auth_secret: SecretStr | None = None
    """HS256 secret of the tokens, 32 bytes or more."""
    auth_jwks: Path | None = None
    """Or a JWKS file of RS256 or ES256 keys."""
    auth_audience: str = Field(default="solocron", max_length=200)
    """What `aud` of a token must be, or have."""
    origins: str = Field(default="", max_length=4096)
    """Origins browsers may connect from, comma-separated, beside the own."""
    max_connections: int = Field(default=20_000, ge=1, le=1_000_000)
    """WebSockets and event streams a server accepts."""
    max_connections_per_token: int = Field(default=1000, ge=0, le=1_000_000)
    """How many of them with one token; `0`: no limit."""
    max_connections_per_address: int = Field(default=1000, ge=0, le=1_000_000)
    """How many of them from one address (IPv6: one /64); set `0` behind a reverse proxy, whose
    address all its clients have, and limit there: `X-Forwarded-For` is not believed."""
    heartbeat: float = Field(default=25, ge=0.5, le=600)
    """A connection silent for so long is pinged, and dropped when it stays silent for half of
    that again; an event stream gets a comment, and is cut when its peer takes nothing for twice
    as long (on Linux)."""
    store_auto_close_schedule: str = "0 0,6 * * *"
    """When stores are closed; `off`: never, there is no such job."""
    store_auto_close_ttl: float = Field(default=600, ge=1, le=_WEEK_S)
    """The TTL of its lock."""
    store_auto_close_ping: SecretStr | None = None
    """A URL that is told of the begin and the end of each run (see [Alerts](#alerts))."""
    store_open_reminder_schedule: str = "*/30 * * * *"
    """When stores are reminded; `off`: never, there is no such job."""
    store_open_reminder_ttl: float = Field(default=300, ge=1, le=_WEEK_S)
    """The TTL of its lock."""
    store_open_reminder_ping: SecretStr | None = None
    """A URL that is told of the begin and the end of each run."""
    stores_table: str = Field(default="stores", max_length=200)
    """The table that stores are kept in, or `schema.table`, if not solocron's own (see [Your own
    stores](#your-own-stores-and-events))."""
    stores_columns: str = Field(default="", max_length=2000)
    """What its columns are: `id=shop_id name=title hours=opening_hours is_open=open`."""
    batch: int = Field(default=500, ge=1, le=5000)
    """Stores changed in one transaction."""
    lease: float = Field(default=30, ge=0.5, le=3600)
    """An owner silent for so long is taken over."""
    sweep: float = Field(default=5, ge=0.1, le=3600)
    """Pause between sweeps for missed and orphaned ticks."""
    catch_up: float = Field(default=3600, ge=0, le=_WEEK_S)
    """How old a tick that nobody ran may be and still be run."""
    notify_urls: SecretStr | None = None
    """Where notifications go besides: [Apprise URLs](https://github.com/caronc/apprise/wiki),
    apart by blanks; `{email}`, `{phone}` or `{contact}` in one stands for the store's contact."""
    notify_attempts: int = Field(default=8, ge=1, le=100)
    """After how many attempts one of them is given up."""
    alert_urls: SecretStr | None = None
    """Where [alerts](#alerts) go: Apprise URLs, apart by blanks."""
    alert_after: float = Field(default=5, ge=0.1, le=3600)
    """For how long Redis or the database must be away before that is an alert."""
    history: float = Field(default=_WEEK_S, ge=3600, le=_CENTURY_S)
    """How long notifications are [kept](#history), and ended runs: seven days."""
    max_skew: float = Field(default=60, ge=1, le=3600)
    """How far this server's clock may be ahead of Redis's."""
    reserve: float = Field(default=0, ge=0, le=600)
    """During a [move from the JavaScript version](#moving-from-the-javascript-version), else `0`:
    by how much its servers may be early or late."""
    grace: float = Field(default=20, ge=0, le=3600)
    """How long running jobs may go on at a stop."""
    on_redis_down: Literal["run", "skip"] = "run"
    """What a tick does without Redis: `run` (the ledger decides) or `skip`."""
    log_format: Literal["text", "json"] = "text"
    """How log lines are written."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """From which level on log lines are written."""

    @field_validator("log_format", "log_level", "on_redis_down", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("redis_url", "database_url", "auth_secret")
    @classmethod
    def _usable(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        judges = {"redis_url": check_url, "database_url": _check_database,
                  "auth_secret": check_secret}  # fmt: skip
        if value is not None:
            judges[str(info.field_name)](value.get_secret_value())
        return value

    @field_validator("redis_host", "host")
    @classmethod
    def _is_host(cls, value: str) -> str:
        if not _HOST_NAME.fullmatch(value) and not _is_address(value):
            shown = "" if "@" in value else f" is {value[:100]!r}"  # a URL may hold a password
            raise ConfigError(f"{shown}: give a host name or an address such as 127.0.0.1")
        return value

    @field_validator("app")
    @classmethod
    def _is_app(cls, value: str) -> str:
        if value and not re.fullmatch(r"\w+(\.\w+)*:\w+", value):
            raise ConfigError(f" is {value!r}: give module:name, such as report:cron")
        return value

    @field_validator("environment")
    @classmethod
    def _is_environment(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{0,40}", value):
            raise ConfigError(
                f" is {value[:100]!r}: write up to 40 of a-z, 0-9 and '-', such as 'staging'"
            )
        return value

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for each in filter(None, (each.strip() for each in value.split(","))):
            if not _ORIGIN.fullmatch(each):
                raise ConfigError(
                    f" has {each[:100]!r}: write origins such as https://shop.example, "
                    "without a path, separated by commas"
                )
        return value

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        Calendar("* * * * *", value)
        return value

    @field_validator("store_auto_close_schedule", "store_open_reminder_schedule")
    @classmethod
    def _is_schedule(cls, value: str) -> str:
        if value.lower() == NO_JOB:
            return NO_JOB
        Calendar(value)
        return value

    @field_validator("store_auto_close_ping", "store_open_reminder_ping")
    @classmethod
    def _is_ping(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_ping(value.get_secret_value())
        return value

    @field_validator("stores_table")
    @classmethod
    def _is_table(cls, value: str) -> str:
        parse_table(value)
        return value

    @field_validator("stores_columns")
    @classmethod
    def _are_columns(cls, value: str) -> str:
        parse_table("shops", value)
        return value

    @field_validator("notify_urls", "alert_urls")
    @classmethod
    def _few_and_short(cls, value: SecretStr | None) -> SecretStr | None:
        urls = _urls(value)
        if len(urls) > _MAX_URLS or any(len(each) > _MAX_URL for each in urls):
            raise ConfigError(f": give at most {_MAX_URLS} URLs of at most {_MAX_URL} characters")
        return value

    @property
    def has_database(self) -> bool:
        """Whether there is one: not with DATABASE_URL=none."""
        return self.database_url.get_secret_value() != NO_DATABASE

    @property
    def channel_urls(self) -> list[str]:
        """The Apprise URLs of `notify_urls`; they stand apart by blanks or commas."""
        return _urls(self.notify_urls)

    @property
    def alert_channel_urls(self) -> list[str]:
        """The Apprise URLs of `alert_urls`."""
        return _urls(self.alert_urls)

    @property
    def store_table(self) -> StoreTable:
        """The table that stores are kept in."""
        return parse_table(self.stores_table, self.stores_columns)

    @property
    def silent_ms(self) -> int:
        """After how many ms without a sign a server counts as silent: it gives one each sweep."""
        return int(self.sweep * 3000) + 2000

    @property
    def kept_ms(self) -> int:
        """For how many ms runs that ended are kept: the catch-up window needs them, too."""
        return int(max(self.history, self.catch_up) * 1000)

    @property
    def redis(self) -> str:
        """The Redis URL: REDIS_URL, else one made of host, port and password; of a cluster, if
        REDIS_CLUSTER says so."""
        url = self._redis_url()
        return as_cluster(url) if self.redis_cluster else url

    def _redis_url(self) -> str:
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        password = self.redis_password
        secret = f":{quote(password.get_secret_value(), safe='')}@" if password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"redis://{secret}{host}:{self.redis_port}/0"

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins browsers may connect from, beside this host's own."""
        return frozenset(each.strip() for each in self.origins.split(",") if each.strip())


def load() -> Settings:
    """The settings of this process's environment. Raises ConfigError: a line per wrong value."""
    known = [variable(name) for name in Settings.model_fields]
    held, wrong = read_secrets(secrets(), os.environ)
    known += [name + SUFFIX for name in secrets()]
    wrong |= {
        name: text
        for name, value in os.environ.items()
        if (text := _not_a_value(name, value, known))
    }
    arguments: dict[str, Any] = {secrets()[name]: text for name, text in held.items()}
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            name, text = _explain(each)
            wrong.setdefault(name, text.replace(name, name + SUFFIX, 1) if name in held else text)
    if wrong:
        raise ConfigError("\n".join(wrong.values()))
    return settings


def secrets() -> dict[str, str]:
    """The variables that can hold a secret, so that a file can give them, and what `Settings` calls
    their values."""
    return {
        variable(field): info.validation_alias if isinstance(info.validation_alias, str) else field
        for field, info in Settings.model_fields.items()
        if SecretStr in (info.annotation, *get_args(info.annotation))
    }


def variable(field: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else _PREFIX + field.upper()


def _urls(value: SecretStr | None) -> list[str]:
    parts = _BETWEEN_URLS.split(value.get_secret_value()) if value else []
    return [each.strip(",") for each in parts if each.strip(",")]


def _not_a_value(name: str, value: str, known: list[str]) -> str | None:
    """What no setting may be, or be called; None if nothing is wrong with that."""
    if name not in known:
        return f"{name} is not a setting{_hint(name, known)}" if name.startswith(_PREFIX) else None
    if len(value) > _MAX_VALUE:
        return f"{name} has {len(value)} characters: give at most {_MAX_VALUE}"
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        return f"{name} is not text in UTF-8: give it as UTF-8"
    if name.endswith("_PORT") and value.startswith("tcp://"):
        return f"{name} is {value[:100]!r}: give a port{_SERVICE_LINKS}"
    return None


def _check_database(url: str) -> None:
    """Raise ConfigError unless it names a database, or none."""
    if url.strip().lower() in _NEARLY_NONE and url != NO_DATABASE:
        raise ConfigError(f" is {url!r}: write {NO_DATABASE} to have no database, or give its URL")
    if url != NO_DATABASE:
        parse_url(url)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _hint(name: str, known: list[str]) -> str:
    if name.startswith((_PREFIX + "SERVICE_", _PREFIX + "PORT_")):
        return _SERVICE_LINKS
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean {close[0]}?" if close else ": remove it"


def _explain(error: ErrorDetails) -> tuple[str, str]:
    """(the variable, what is wrong with it and what to write)."""
    field = next(
        (each for each in Settings.model_fields if error["loc"][0] in (each, variable(each))), ""
    )
    name = variable(field)
    if isinstance(reason := error.get("ctx", {}).get("error"), ConfigError):
        text = str(reason)
        if text.startswith(name):
            return name, text
        return name, f"{name}{text}" if text.startswith((" ", ":")) else f"{name}: {text}"
    value = "" if "URL" in name or "SECRET" in name else f" is {str(error['input'])[:100]!r}"
    return name, f"{name}{value}: give {_wanted(field)}"


def _wanted(field: str) -> str:
    info = Settings.model_fields[field]
    if words := get_args(info.annotation):
        return " or ".join(str(word) for word in words)
    if info.annotation is bool:
        return "1 or 0"
    limits = {type(each): each for each in info.metadata}
    if MaxLen in limits:
        return f"at most {limits[MaxLen].max_length} characters"
    kind = "a whole number" if info.annotation is int else "a number of seconds"
    return f"{kind} from {limits[Ge].ge} to {limits[Le].le}"
