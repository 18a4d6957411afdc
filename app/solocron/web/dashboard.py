"""The health dashboard: a page that says how the jobs are, made on the server, without script."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from solocron.clock import Clock
from solocron.locks.statistics import LockCounts
from solocron.web.auth import Authenticator, Unauthenticated
from solocron.web.guard import basic_password, bearer

State = Callable[[], Awaitable[Mapping[str, Any]]]


class Dashboard:
    """Handles `/dashboard` for tokens that may run jobs. A browser gives the token as the
    password it asks for; the user name does not matter."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        clock: Clock,
        state: State,
        statistics: Callable[[], Mapping[str, LockCounts]],
        alarms: Collection[str],
    ) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._state = state
        self._statistics = statistics
        self._alarms = alarms
        environment = Environment(
            loader=PackageLoader("solocron.web"), autoescape=True, undefined=StrictUndefined
        )
        environment.filters["moment"] = _moment
        self._page = environment.get_template("dashboard.html")

    async def page(self, request: web.Request) -> web.Response:
        """The page, or what makes a browser ask for the token."""
        try:
            token = bearer(request) or basic_password(request)
            principal = self._authenticator.authenticate(token)
        except Unauthenticated as error:
            ask = {"WWW-Authenticate": 'Basic realm="solocron: give a token as the password"'}
            return web.Response(status=401, text=str(error), headers=ask)
        principal.require("jobs:run")
        nonce = secrets.token_urlsafe(16)
        text = self._page.render(
            state=await self._state(), statistics=self._statistics(), alarms=sorted(self._alarms),
            now=_moment(self._clock.now_ms()), nonce=nonce,
        )  # fmt: skip
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; frame-ancestors 'none'"
        return web.Response(
            text=text, content_type="text/html",
            headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"},
        )  # fmt: skip


def _moment(ms: float | None) -> str:
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
