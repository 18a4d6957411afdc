"""Log lines for people (the message, then its fields) or for machines (one JSON object a line).

What is logged may hold text from outside: control characters are written as escapes, so that no
value can forge a line or steer a terminal, and a password inside a URL is left out. Within a span
of OpenTelemetry they have the field `trace_id`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s\"]+@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def redact(text: str) -> str:
    """`text` without the passwords of the URLs in it."""
    return _PASSWORD.sub(r"\1***@", text)


def one_line(text: str) -> str:
    """`text` with its control characters as escapes, and without the passwords of URLs."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], redact(text))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if trace_id := _trace_id():
        fields.setdefault("trace_id", trace_id)
    return fields


def _trace_id() -> str | None:
    """The trace that what is done now is part of, as 32 hexadecimal digits."""
    tracing = sys.modules.get("opentelemetry.trace")  # not imported: then there is no span
    if tracing is None:
        return None
    context = tracing.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


class TextFormatter(logging.Formatter):
    """`2026-01-01T00:00:00.000Z INFO message  job=... tick=...`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback behind it if there is one."""
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}"
        line = one_line(f"{line}  {fields}" if fields else line)
        if record.exc_info:
            line += "\n" + redact(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", ...fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object on one line."""
        line: dict[str, object] = {
            **_fields(record), "time": _time(record), "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, ensure_ascii=False, default=str))


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure(form: Literal["text", "json"], level: str) -> None:
    """Send solocron's own lines to stderr; other libraries' only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("solocron").setLevel(level.upper())
