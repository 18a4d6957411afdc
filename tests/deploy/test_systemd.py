"""The unit is one that systemd takes, is confined, and fits the service's settings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from deployment import DEPLOY, judged, replaced, tool
from solocron.settings import Settings, load

FILE = DEPLOY / "solocron.service"
TEXT = FILE.read_text()


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    text = replaced(TEXT, ("/opt/solocron/bin/solocron", sys.executable))
    (tmp_path / "solocron.service").write_text(text)
    return tmp_path / "solocron.service"


def test_systemd_takes_the_unit(unit: Path) -> None:
    assert judged(tool("systemd-analyze", "systemd"), "verify", unit) == ""


def test_a_misspelt_line_would_be_found(unit: Path) -> None:
    """The check above reads the lines, it does not only find the file."""
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchdogSecs"))
    assert "WatchdogSecs" in judged(tool("systemd-analyze", "systemd"), "verify", unit)


def test_the_unit_is_confined(unit: Path) -> None:
    said = judged(
        tool("systemd-analyze", "systemd"), "security", "--offline=yes", "--threshold=15", unit
    )
    assert "OK" in said.splitlines()[-1]


def test_the_manager_waits_for_ready_and_longer_than_the_grace() -> None:
    assert values("Type") == ["notify"] and values("NotifyAccess") == ["main"]
    assert int(values("TimeoutStopSec")[0]) > Settings.model_fields["grace"].default + 10
    assert int(values("WatchdogSec")[0]) > 10  # longer than what the loop may be late by
    assert values("ExecStart") == ["/opt/solocron/bin/solocron serve"]


def test_each_credential_is_the_file_of_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = dict(each.split(":") for each in values("LoadCredential"))
    texts = {"database-url": "postgresql://u:p@h/d", "redis-url": "redis://:p@h:1/0",
             "auth-secret": "x" * 32}  # fmt: skip
    assert set(credentials) == set(texts)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert credentials[name] in (DEPLOY / "README.md").read_text()
    for each in values("Environment"):
        name, _, value = each.partition("=")
        if "%d" in value:
            monkeypatch.setenv(name, value.replace("%d", str(tmp_path)))
    settings = load()
    assert settings.redis == texts["redis-url"] and settings.auth_secret is not None
    assert settings.database_url.get_secret_value() == texts["database-url"]
