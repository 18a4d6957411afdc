"""What the tests of `deploy/` share: its files, and the tools that judge them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def tool(name: str, package: str) -> str:
    """The program `name`, else skip; the Debian package it is in."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is missing: apt-get install {package}")
    return found


def judged(*command: str | Path, within_s: float = 100, **options: object) -> str:
    """What a tool that found nothing wrong printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """`text` with each of these changed, which must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text
