"""One worker process of the demo: the real service, on a clock that the parent hands it.

Settings come from the environment, as for `solocron serve`. On stdout it says `{"loaded": true}`;
then it reads one line from stdin, `{"clock": {...}, "failing": {...}}`, so that the show's time
begins when every worker is there, however slow the machine; then it says `{"port": <n>}`. The clock
is the values of a `ScaledClock`; what fails is the schedule and the file of a job that does, or
null. When stdin ends, the parent is gone, and the worker stops as if signalled.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from solocron import logs
from solocron.clock import ScaledClock
from solocron.demo.failing import failing_job
from solocron.service import Solocron
from solocron.serving import serve_until_signalled
from solocron.settings import load


async def main() -> None:
    """Serve until signalled or left alone. Raises ConfigError."""
    settings = load()
    logs.configure(settings.log_format, settings.log_level)
    stdin = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
    )
    _say("loaded", True)
    if line := await stdin.readline():
        order = json.loads(line)
        cron = Solocron(settings, clock=ScaledClock(**order["clock"]))
        if order["failing"]:
            cron.add(failing_job(settings, **order["failing"]))
        await _serve(cron, stdin)
    pipe.close()


async def _serve(cron: Solocron, stdin: asyncio.StreamReader) -> None:
    stop = asyncio.Event()
    watch = asyncio.create_task(_stop_at_end(stdin, stop))
    try:
        await serve_until_signalled(
            cron, stop=stop, started=lambda server: _say("port", server.port)
        )
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _stop_at_end(stdin: asyncio.StreamReader, stop: asyncio.Event) -> None:
    await stdin.read()
    stop.set()


def _say(key: str, value: object) -> None:
    print(json.dumps({key: value}), flush=True)


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except asyncio.CancelledError:
        sys.exit(130)
