"""What the commands have in common: how they run, print, ask and complain.

A command imports what it works with when it is run, so that `--help` does not wait for all of it.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Coroutine
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from solocron import logs
from solocron.cron.values import result_text, value_of
from solocron.errors import ConfigError, SolocronError

if TYPE_CHECKING:
    from solocron.service import Solocron

_T = TypeVar("_T")

_PIPE_WIDTH = 10_000
_MAX_SHOWN = 300

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def complain(error: object) -> None:
    """Say on stderr what is wrong."""
    for line in str(error).splitlines():
        print(f"solocron: {logs.one_line(line)}", file=sys.stderr)


def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work`; SIGTERM cancels it as Ctrl-C does, so that it can give back what it holds."""

    import uvloop

    async def cancellable() -> _T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(cancellable())


def service(*, working: bool = False) -> Solocron:
    """The service. Commands that only look say what is wrong themselves: unless debugging, they
    log errors only."""
    from solocron.service import Solocron
    from solocron.settings import load

    settings = load()
    looking = not working and settings.log_level != "debug"
    logs.configure(settings.log_format, "error" if looking else settings.log_level)
    return _own(settings.app) if settings.app else Solocron(settings)


def _own(app: str) -> Solocron:
    """The service of a user's own module, such as `report:cron`; the working directory is looked
    in, too."""
    from solocron.service import Solocron

    module, _, name = app.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(f"SOLOCRON_APP is {app!r}: {error}") from None
    except SolocronError:  # of its settings: says itself what to do
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = ([each for each in frames if each.filename.startswith(os.getcwd())] or frames)[-1]
        said = logs.one_line(f"{type(error).__name__}: {error}")[:_MAX_SHOWN]
        raise ConfigError(
            f"SOLOCRON_APP is {app!r}: importing {module} raised {said} ({at.filename}, line "
            f"{at.lineno}): mend that, or set what it needs, as where the service runs"
        ) from None
    if not isinstance(found, Solocron):
        raise ConfigError(f"SOLOCRON_APP is {app!r}: {module} has no Solocron of that name")
    return found


def print_rows(rows: list[dict[str, Any]], columns: dict[str, str], as_json: bool) -> None:
    """Rows as JSON, or as a table of `columns` (key -> heading). Nothing is cut off: what does
    not fit a terminal is folded, and a pipe has no width."""
    if as_json:
        print(json.dumps(rows, default=str))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(heading, overflow="fold") for heading in columns.values()))
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in columns))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    from rich.markup import escape

    return "-" if value is None or value == "" else escape(logs.one_line(str(value)))


def moment(ms: float | None) -> str | None:
    """A time (UTC epoch ms) as text; None when there is none."""
    if ms is None or ms < 0:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def agreed(question: str) -> bool:
    """Ask the user; anything but y or yes is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def shown_result(result: object) -> str:
    """What a run gave back, in a line: counts as such, anything else as JSON."""
    text = result_text(result)
    if text is None:
        return ""
    value = value_of(text)
    if isinstance(value, dict) and value and all(type(each) is int for each in value.values()):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def who() -> str:
    """The user who types this, and where."""
    try:
        user = getpass.getuser()
    except (OSError, LookupError):  # a container's user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
