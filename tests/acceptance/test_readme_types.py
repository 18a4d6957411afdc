"""The README's Python is typed: mypy and pyright, each at its strictest, find nothing to say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from original import node_module

ROOT = Path(__file__).parents[2]
CODE = re.findall(
    r"^```python (\S+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
# What each checker must refuse: names, arguments and types that are none of ours.
WRONG = """\
from datetime import timedelta

from solocron import Nonsense
from solocron import Run, Solocron

cron = Solocron.from_env()


@cron.job("0 3 * * *", ttl="ten minutes")
async def one(run: Run) -> None:
    run.tick.nonsense


@cron.job("0 3 * * *", tll=timedelta(minutes=10))
async def two(run: Run) -> None:
    print(run.nonsense)
"""
WRONG_LINES = {3, 9, 11, 14, 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The README's files, in an empty folder."""
    assert len(CODE) >= 4
    for name, body in CODE:
        (tmp_path / name).write_text(body)
    return tmp_path


def mypy(folder: Path) -> str:
    """What `mypy --strict` says of the folder's files."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=",
         f"--cache-dir={folder / '.cache'}", *sorted(folder.glob("*.py"))],
        env={**os.environ, "MYPYPATH": str(ROOT / "app")}, cwd=folder,
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def pyright(folder: Path) -> str:
    """What pyright says of them, in its mode `strict`."""
    program = node_module("pyright") / "index.js"
    (folder / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(ROOT / "app")], "typeCheckingMode": "strict"})
    )
    done = subprocess.run(
        ["node", program, "--pythonpath", sys.executable, "--project", folder],
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("check", [mypy, pyright])
def test_the_readmes_code_is_typed(folder: Path, check: Callable[[Path], str]) -> None:
    assert not re.search(r"\berror\b", said := check(folder)), said


@pytest.mark.parametrize("check", [mypy, pyright])
def test_what_is_none_of_ours_is_refused(tmp_path: Path, check: Callable[[Path], str]) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    lines = {int(n) for n in re.findall(r"wrong\.py:(\d+).*error", check(tmp_path))}
    assert lines >= WRONG_LINES
