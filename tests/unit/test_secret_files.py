"""Secrets from files: what `<NAME>_FILE` holds is taken like `<NAME>`, or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from solocron.errors import ConfigError
from solocron.secret_files import MAX_SECRET
from solocron.settings import Settings, load, secrets, variable

SECRET = "hunter2-do-not-show-" * 2
VALUES = {
    "REDIS_URL": "redis://:p@h:1/2",
    "REDIS_PASSWORD": "p w",
    "DATABASE_URL": "postgresql://u:p@h/d",
    "SOLOCRON_AUTH_SECRET": SECRET,
    "SOLOCRON_NOTIFY_URLS": "mailto://u:p@h\nmailto://u:p@i",
    "SOLOCRON_STORE_AUTO_CLOSE_PING": "https://u:p@h/uuid",
    "SOLOCRON_STORE_OPEN_REMINDER_PING": "https://h/uuid?create=1",
    "SOLOCRON_ALERT_URLS": "mailto://u:p@h\nmailto://u:p@i",
}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [variable(field) for field in Settings.model_fields]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name + "_FILE", raising=False)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that SOLOCRON_AUTH_SECRET_FILE names."""
    path = tmp_path / "auth-secret"
    monkeypatch.setenv("SOLOCRON_AUTH_SECRET_FILE", str(path))
    return path


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        load()
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", VALUES)
def test_every_secret_can_come_from_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(VALUES[name] + "\n")
    monkeypatch.setenv(name + "_FILE", str(tmp_path / "secret"))
    value = getattr(load(), name.removeprefix("SOLOCRON_").lower())
    assert value.get_secret_value() == VALUES[name]
    assert VALUES[name] not in repr(load())


def test_these_are_all_the_secrets() -> None:
    assert set(secrets()) == set(VALUES)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_line_ends_behind_a_secret_are_no_part_of_it(file: Path, end: str) -> None:
    file.write_bytes(f" {SECRET} ".encode() + end.encode())
    secret = load().auth_secret
    assert secret is not None and secret.get_secret_value() == f" {SECRET} "


def test_an_empty_variable_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOCRON_AUTH_SECRET_FILE", "")
    assert load().auth_secret is None


def test_a_secret_given_twice_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(SECRET)
    monkeypatch.setenv("SOLOCRON_AUTH_SECRET", SECRET)
    said = refusal()
    assert said == (
        "SOLOCRON_AUTH_SECRET_FILE and SOLOCRON_AUTH_SECRET are both given: give one of them"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory: give a file that this process can read"),
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (SECRET.encode() + b"\0", "the file holds a NUL"),
        (SECRET.encode() + b"\xff", "the file is not text in UTF-8"),
        (SECRET.encode() * MAX_SECRET, f"the file has more than {MAX_SECRET} bytes"),
    ],
    ids=["missing", "empty", "only a line end", "NUL", "no UTF-8", "too large"],
)
def test_a_file_that_cannot_be_used_is_named(
    file: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        file.write_bytes(content)
    assert refusal().startswith(f"SOLOCRON_AUTH_SECRET_FILE is {str(file)!r}: {reason}")


def test_a_folder_is_no_file(file: Path) -> None:
    file.mkdir()
    assert "Is a directory" in refusal()


def test_an_endless_file_is_read_to_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD_FILE", "/dev/zero")
    assert "has more than" in refusal()


def test_the_largest_secret_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("x" * MAX_SECRET)
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "secret"))
    password = load().redis_password
    assert password is not None and len(password.get_secret_value()) == MAX_SECRET


def test_a_wrong_value_in_a_file_is_told_under_the_files_name(file: Path) -> None:
    file.write_text("short")
    assert refusal().startswith("SOLOCRON_AUTH_SECRET_FILE")


def test_only_secrets_have_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOCRON_HOST_FILE", "/run/host")
    assert refusal().startswith("SOLOCRON_HOST_FILE is not a setting: did you mean")
