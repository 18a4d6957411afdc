"""A FastAPI service: `uvicorn fastapi_host:app`, or gunicorn with uvicorn's worker.

uvicorn itself closes WebSockets with 1012 before it ends the lifespan. Run as `python
fastapi_host.py PORT` it drains the service first: clients go with 1001 and a time to come back.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.routing import WebSocketRoute

from own_jobs import cron

app = FastAPI(lifespan=cron.lifespan, routes=[WebSocketRoute("/ws", cron.websocket)])


@app.post("/remind")
async def remind() -> dict[str, Any]:
    """Run a job now."""
    outcome = await cron.run_job("store-open-reminder")
    return {"state": outcome.state, **outcome.counts}


class Server(uvicorn.Server):
    """uvicorn, but solocron's clients are let go first."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, after a drain."""
        await cron.drain()
        await super().shutdown(sockets)


if __name__ == "__main__":
    Server(uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[1]))).run()
