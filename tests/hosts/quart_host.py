"""A Quart service: `hypercorn quart_host:app`. Quart has its own idea of a WebSocket: solocron's is
taken out before Quart sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart import Quart

from own_jobs import cron

app = Quart(__name__)


@app.while_serving
async def jobs() -> AsyncIterator[None]:
    """The service lives as long as the application."""
    async with cron:
        yield


@app.post("/remind")
async def remind() -> dict[str, Any]:
    """Run a job now."""
    outcome = await cron.run_job("store-open-reminder")
    return {"state": outcome.state, **outcome.counts}


class WithSockets:
    """An ASGI application, but `/ws` is solocron's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand on to either."""
        is_ours = scope["type"] == "websocket" and scope["path"] == "/ws"
        await (cron.websocket if is_ours else self._inner)(scope, receive, send)


app.asgi_app = WithSockets(app.asgi_app)  # type: ignore[method-assign]
