"""The command line. A user's mistake is one line on stderr and exit code 2, never a traceback.

Exit codes: 0 done, 1 the job or the import failed, `doctor` found something that needs attention,
or a question was not answered with yes, 2 a wrong setting or argument, 3 nothing was done because
another server is at it or something is not reachable, 130 interrupted.

Only results go to stdout; log lines, questions and complaints go to stderr.
"""

from __future__ import annotations

import asyncio
import io
import sys

from solocron.cli.backfilling import backfill
from solocron.cli.commands import app
from solocron.cli.console import complain
from solocron.cli.deadletters import deadletters
from solocron.cli.doctor import doctor
from solocron.cli.operating import explain, history, pause, resume
from solocron.cli.raised import alerts
from solocron.cli.settings import settings
from solocron.cli.stores import stores_app
from solocron.errors import (
    ConfigError,
    InvalidInput,
    LockUnavailable,
    SolocronError,
    StorageUnavailable,
)

for command in (backfill, history, explain, pause, resume, doctor, alerts, deadletters, settings):
    app.command()(command)
app.add_typer(stores_app, name="stores")


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks the characters
    try:
        app(prog_name="solocron")
    except (ConfigError, InvalidInput) as error:
        complain(error)
        sys.exit(2)
    except (LockUnavailable, StorageUnavailable) as error:
        complain(error)
        sys.exit(3)
    except SolocronError as error:
        complain(error)
        sys.exit(1)
    except asyncio.CancelledError:
        sys.exit(130)
