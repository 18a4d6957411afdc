"""Secrets from files: `<NAME>_FILE` names a file that holds what `<NAME>` would.

This is how Docker, Kubernetes and systemd hand secrets over: a file shows in no process list and in
no inspection of a container, as an environment variable does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from solocron.errors import ConfigError

SUFFIX = "_FILE"
MAX_SECRET = 16 * 1024  # bytes


def read_secrets(
    names: Iterable[str], environ: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(what the files hold that `environ` names for some of `names`, what is wrong with the other
    files), each by the name of the variable. An empty variable counts as not given."""
    found: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name in names:
        path = environ.get(name + SUFFIX)
        if path and environ.get(name):
            wrong[name] = f"{name}{SUFFIX} and {name} are both given: give one of them"
        elif path:
            try:
                found[name] = _read(Path(path))
            except ConfigError as error:
                wrong[name] = f"{name}{SUFFIX} is {path[:200]!r}: {error}"
    return found, wrong


def _read(path: Path) -> str:
    """The file's text without the line end that editors and `echo` put behind it. Raises
    ConfigError, which never shows the text."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{reason}: give a file that this process can read") from None
    except ValueError:  # a name that no file can have
        raise ConfigError("give the path of a file") from None
    if len(data) > MAX_SECRET:
        raise ConfigError(f"the file has more than {MAX_SECRET} bytes: give a smaller one")
    try:
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError("the file is not text in UTF-8: write it as UTF-8") from None
    if not text or "\0" in text:
        what = "holds a NUL" if text else "is empty"
        raise ConfigError(f"the file {what}: write the secret into it, and nothing else")
    return text
