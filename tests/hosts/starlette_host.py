"""A Starlette service: `uvicorn starlette_host:app`. With solocron's own port besides, it has the
event streams, REST, dashboard and metrics, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from own_jobs import cron


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The service, and its routes on SOLOCRON_PORT; `cron.lifespan` is the service alone."""
    async with cron.serving():
        yield


async def remind(request: Request) -> JSONResponse:
    """Run a job now."""
    outcome = await cron.run_job("store-open-reminder")
    return JSONResponse({"state": outcome.state, **outcome.counts})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/remind", remind, methods=["POST"]),
        WebSocketRoute("/ws", cron.websocket),
    ],
)
