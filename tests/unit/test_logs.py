"""Log lines: one per event, whatever is in it, and no password in any."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solocron import logs
from solocron.logs import JsonFormatter, TextFormatter, one_line, redact

STANDARD = {"time", "level", "logger", "message"}


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("solocron")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("solocron.cron", logging.INFO, __file__, 1, message, args, None)
    made.created = 1_767_225_600.5
    vars(made).update(fields)
    return made


def test_a_text_line_is_the_message_then_its_fields() -> None:
    line = TextFormatter().format(record("Starting %s cron job...", "x", job="x", tick=3))
    assert line == "2026-01-01T00:00:00.500Z INFO Starting x cron job...  job=x tick=3"


def test_a_json_line_is_one_object() -> None:
    line = json.loads(JsonFormatter().format(record("✅ %s", "ready", attempt=2, at={1})))
    assert line == {
        "time": "2026-01-01T00:00:00.500Z", "level": "info", "logger": "solocron.cron",
        "message": "✅ ready", "attempt": 2, "at": "{1}",
    }  # fmt: skip


def test_a_field_cannot_pass_for_a_standard_one() -> None:
    line = json.loads(JsonFormatter().format(record("real", level="forged", time="never")))
    assert (line["level"], line["time"][:4]) == ("info", "2026")


@given(st.text(max_size=200), st.text(max_size=200))
def test_nothing_logged_forges_a_line(message: str, value: str) -> None:
    made = record("%s", message, value=value)
    text = TextFormatter().format(made)
    assert len(text.splitlines()) == 1
    assert not any(each < " " or "\x7f" <= each <= "\x9f" for each in text)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line).keys() >= STANDARD


@pytest.mark.parametrize(
    "url",
    ["redis://:hunter2@h:1/0", "postgresql://u:hunter2@h/d", "redis://u:hun@ter2@h", "x://u:hunter2/@h"],
)  # fmt: skip
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_password_in_a_drivers_message_is_left_out(
    url: str, formatter: logging.Formatter
) -> None:
    try:
        raise OSError(f"cannot connect to {url}")
    except OSError as error:
        made = record("lost: %s", error, url=url)
        made.exc_info = sys.exc_info()
    line = formatter.format(made)
    assert "ter2" not in line and ":***@h" in line and "OSError" in line


@pytest.mark.parametrize("plain", ["http://127.0.0.1:8080", "a:b@c", "listening on http://h:1, x"])
def test_what_is_no_password_stays(plain: str) -> None:
    assert redact(plain) == one_line(plain) == plain


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("form", ["text", "json"])
def test_only_our_own_lines_below_a_warning(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json" if form == "json" else "text", "info")
    logging.getLogger("solocron.web").info("ours")
    logging.getLogger("solocron.web").debug("too fine")
    logging.getLogger("redis").info("theirs")
    logging.getLogger("redis").warning("their warning")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [("ours" in line, "their warning" in line) for line in captured.err.splitlines()] == [
        (True, False), (False, True),
    ]  # fmt: skip
