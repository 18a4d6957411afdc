"""The dashboard: how the fleet is, as a page made on the server.

Without script it renews itself as a whole. `static/dashboard.js` does so part by part, counts down,
listens to notifications and has jobs run, paused and locks deleted: what the token is for. It has
no token: the browser sends along the password that the page was asked for with. Not every browser
does so when it opens a WebSocket: for that the script is given a token that only listens, for a
minute, which goes into the first frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aiohttp import web

from solocron.cron.values import progress_text
from solocron.locks.results import token_tick
from solocron.locks.statistics import LockCounts
from solocron.web import charts
from solocron.web.auth import Authenticator, Principal, Unauthenticated, listening_token
from solocron.web.fleet import SPAN_MS, SPANS, FleetView
from solocron.web.guard import basic_password, bearer, own_page_token, require_reader

if TYPE_CHECKING:
    from jinja2 import Template

_RUNS = 30
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}


class Dashboard:
    """Handles `/dashboard` for tokens that may read of jobs. A browser gives the token as the
    password it asks for; the user name does not matter. `names` are the jobs."""

    def __init__(
        self,
        fleet: FleetView,
        *,
        authenticator: Authenticator,
        names: Mapping[str, object],
        statistics: Callable[[], Mapping[str, LockCounts]],
    ) -> None:
        self._fleet = fleet
        self._authenticator = authenticator
        self._names = names
        self._statistics = statistics

    @cached_property
    def _page(self) -> Template:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("solocron.web"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.filters.update(
            moment=moment, span=charts.span, worker=worker, progress=progress_text
        )
        return environment.get_template("dashboard.html")

    async def page(self, request: web.Request) -> web.Response:
        """The page, or what makes a browser ask for the token."""
        try:
            token = bearer(request) or basic_password(request)
            principal = self._authenticator.authenticate(token)
        except Unauthenticated as error:
            ask = {"WWW-Authenticate": 'Basic realm="solocron: give a token as the password"'}
            return web.Response(status=401, text=str(error), headers=ask)
        require_reader(principal)
        text = self._page.render(
            **await self._state(), **_may(principal), statistics=self._statistics(),
            height=charts.HEIGHT,
        )  # fmt: skip
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    async def token(self, request: web.Request) -> web.Response:
        """A token by which the page listens, in exchange for one that may, of this very page."""
        principal = self._authenticator.authenticate(own_page_token(request))
        token = listening_token(self._authenticator, principal)
        return web.json_response({"token": token}, headers={"Cache-Control": "no-store"})

    async def _state(self) -> dict[str, Any]:
        jobs, workers, locks, summary, alerts = await asyncio.gather(
            self._fleet.jobs(list(self._names), _RUNS), self._fleet.workers(),
            self._fleet.held(), self._fleet.summary(), self._fleet.alerts(),
        )  # fmt: skip
        missing = {**jobs["missing"], **workers["missing"], **locks["missing"],
                   **summary["missing"]}  # fmt: skip
        now = jobs["now"]
        until = (now // SPAN_MS + 1) * SPAN_MS
        hours = summary["hours"]
        return {
            "now": now, "missing": missing, "jobs": jobs["jobs"],
            "has_database": self._fleet.has_database,
            "timelines": {job["job"]: charts.timeline(job["runs"] or (), _RUNS)
                          for job in jobs["jobs"]},
            "workers": workers["workers"], "locks": locks["locks"],
            "looked": locks["now"],
            "alerts": alerts["alerts"], "stores": summary["stores"],
            "deliveries": summary["deliveries"],
            "days": charts.days(list(self._names), hours, until, SPAN_MS, SPANS)
                    if hours is not None else None,
        }  # fmt: skip


def _may(principal: Principal) -> dict[str, bool]:
    """What the page offers: to run and pause jobs, to delete locks, to listen to all stores."""
    return {
        "may_run": principal.may("jobs:run"), "may_unlock": principal.may("admin"),
        "may_listen": principal.may("notifications:read") and principal.stores is None,
    }  # fmt: skip


def worker(owner: str) -> str:
    """An owner's token, short: host and pid; whole in any other form."""
    return owner if token_tick(owner) is None else ":".join(owner.split(":")[:-2])


def moment(ms: float | None) -> str:
    """A time as the page shows it; '' for none."""
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
