"""A benchmark as its command runs it, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


@dataclass(frozen=True)
class Ran:
    """A benchmark that ended."""

    code: int
    out: str
    err: str


async def start(name: str, *args: str, folder: Path) -> asyncio.subprocess.Process:
    """Start it in `folder`, where no peers are."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *args, cwd=folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip


async def bench(name: str, *args: str, folder: Path) -> Ran:
    """Run it to its end."""
    process = await start(name, *args, folder=folder)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


def results(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The document that it wrote in `folder`, and all the text of its chart."""
    written = folder / "build" / "benchmarks"
    document = json.loads((written / f"{name}.json").read_text())
    chart = ElementTree.fromstring((written / f"{name}.svg").read_text())
    assert document["bench"] == name and document["machine"]["cores"]
    assert any(element.tag.endswith("polyline") for element in chart.iter())
    return document, " ".join(chart.itertext())
