"""An aiohttp service: `python aiohttp_host.py PORT`. The routes of solocron are in its own
application, `/ws` among them."""

from __future__ import annotations

import sys

from aiohttp import web

from own_jobs import cron

app = web.Application()
cron.attach(app)


async def remind(request: web.Request) -> web.Response:
    """Run a job now."""
    outcome = await cron.run_job("store-open-reminder")
    return web.json_response({"state": outcome.state, **outcome.counts})


app.router.add_post("/remind", remind)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
