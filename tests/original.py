"""The original system's servers, as Node processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from workers import Worker

FOLDER = Path(__file__).parent / "node"
INSTALL = "apt-get install nodejs npm && npm install --prefix tests/node --no-package-lock"


def node_module(name: str) -> Path:
    """Where a package of `tests/node` is, else skip."""
    found = FOLDER / "node_modules" / name
    if shutil.which("node") is None or not found.is_dir():
        pytest.skip(f"{name} for Node is missing: {INSTALL}")
    return found


class NodeServer(Worker):
    """One server of the original system; `events` is what it said so far."""

    @classmethod
    async def launch(cls, redis: str | Mapping[str, str], **options: Any) -> Self:
        """Start one that talks to the Redis at a URL, or at what REDIS_HOST and its like say, and
        wait until it is connected. The options are those of `node/original.js`."""
        node_module("ioredis")
        variables = {"REDIS_URL": redis} if isinstance(redis, str) else dict(redis)
        options = {"ttl_ms": 60_000, "body_ms": 5, "late_ms": 0, "name": "node", **options}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REDIS_")}
        process = await asyncio.create_subprocess_exec(
            "node", FOLDER / "original.js", json.dumps(options), env={**inherited, **variables},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        server = cls(process)  # type: ignore[arg-type]
        await server.saw(lambda event: event["event"] == "ready")
        return server

    async def run(self, tick: int, **options: Any) -> None:
        """Have its cron job begin `tick` now, and wait until it has begun, or skipped it."""
        await self.order(tick=tick, **options)
        await self.saw(lambda each: each["event"] in ("start", "skipping") and each["tick"] == tick)

    def did(self, tick: int) -> list[str]:
        """What it said of the tick."""
        return [each["event"] for each in self.events if each.get("tick") == tick]
