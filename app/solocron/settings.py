"""Settings from the environment. A wrong value names the variable, the value and the remedy.

Values that can carry a secret are kept as `SecretStr`: they show in no log, repr or error.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from solocron.errors import ConfigError

_PREFIX = "SOLOCRON_"
_MAX_VALUE = 16 * 1024
_MAX_URLS = 20
_MAX_URL = 2000
# A comma divides only where a URL follows: it also stands in URLs. The name before one is optional.
_BETWEEN_URLS = re.compile(r"\s+|,\s*(?=(?:[a-z0-9-]{1,32}=)?[A-Za-z][A-Za-z0-9+.-]*://)")


class Settings(BaseSettings):
    """What a deployment can set. Times in s unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="SOLOCRON_", env_ignore_empty=True, frozen=True)

    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    redis_host: str = Field(default="127.0.0.1", validation_alias="REDIS_HOST", max_length=255)
    redis_port: int = Field(default=6379, validation_alias="REDIS_PORT", ge=1, le=65535)
    redis_password: SecretStr | None = Field(default=None, validation_alias="REDIS_PASSWORD")
    redis_deadline: float = Field(default=1.0, ge=0.05, le=60)
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///solocron.db"), validation_alias="DATABASE_URL"
    )
    environment: str = Field(default="", pattern=r"^[a-z0-9-]{0,40}$")
    timezone: str = Field(default="UTC", max_length=64)
    host: str = Field(default="127.0.0.1", max_length=255)
    port: int = Field(default=8080, ge=0, le=65535)
    auth_secret: SecretStr | None = None
    auth_jwks: Path | None = None
    origins: str = Field(default="", max_length=4096)
    max_connections: int = Field(default=20_000, ge=1, le=1_000_000)
    store_auto_close_schedule: str = Field(default="0 0,6 * * *", max_length=200)
    store_auto_close_ttl: float = Field(default=600, gt=0, le=7 * 86400)
    store_open_reminder_schedule: str = Field(default="*/30 * * * *", max_length=200)
    store_open_reminder_ttl: float = Field(default=300, gt=0, le=7 * 86400)
    batch: int = Field(default=500, ge=1, le=5000)
    lease: float = Field(default=30, ge=0.5, le=3600)
    sweep: float = Field(default=5, ge=0.1, le=3600)
    catch_up: float = Field(default=3600, ge=0, le=7 * 86400)
    notify_urls: SecretStr | None = None
    grace: float = Field(default=20, ge=0, le=3600)
    on_redis_down: Literal["run", "skip"] = "run"
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("log_format", "log_level", "on_redis_down", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("notify_urls")
    @classmethod
    def _few_and_short(cls, value: SecretStr | None) -> SecretStr | None:
        urls = _urls(value)
        if len(urls) > _MAX_URLS or any(len(each) > _MAX_URL for each in urls):
            raise ValueError(f"give at most {_MAX_URLS} URLs of at most {_MAX_URL} characters each")
        return value

    @property
    def channel_urls(self) -> list[str]:
        """The Apprise URLs of `notify_urls`; they stand apart by blanks or commas."""
        return _urls(self.notify_urls)

    @property
    def redis(self) -> str:
        """The Redis URL: REDIS_URL, else one made of host, port and password."""
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
    """The settings of this process's environment. Raises ConfigError naming every wrong value."""
    known = [variable(name) for name in Settings.model_fields]
    wrong = [
        f"{name} has {len(value)} characters: at most {_MAX_VALUE}"
        for name, value in os.environ.items()
        if name in known and len(value) > _MAX_VALUE
    ]
    wrong += [
        f"{name} is not a setting{_suggestion(name, known)}"
        for name in os.environ
        if name.startswith(_PREFIX) and name not in known
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(each) for each in error.errors())) from None


def variable(field: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else _PREFIX + field.upper()


def _urls(value: SecretStr | None) -> list[str]:
    parts = _BETWEEN_URLS.split(value.get_secret_value()) if value else []
    return [each.strip(",") for each in parts if each.strip(",")]


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean {close[0]}?" if close else ""


def _explain(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    name = variable(name) if name in Settings.model_fields else name
    secret = any(word in name for word in ("URL", "PASSWORD", "SECRET"))
    value = "" if secret else f" is {str(error['input'])[:100]!r}"
    return f"{name}{value}: {error['msg'][:1].lower()}{error['msg'][1:]}"
