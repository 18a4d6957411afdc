"""Routes, the errors they answer with, and the aiohttp server when solocron has one of its own."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http import HttpProcessingError

from solocron.errors import (
    ConfigError,
    InvalidInput,
    LockUnavailable,
    NoDatabase,
    StorageUnavailable,
    UnknownJob,
)
from solocron.stores.repository import StoresReadOnly, UnknownStore
from solocron.web import asyncapi, openapi, static
from solocron.web.api import StoresApi
from solocron.web.auth import Authenticator, Forbidden, Unauthenticated
from solocron.web.connections import Draining
from solocron.web.dashboard import Dashboard
from solocron.web.events import Events, Handler
from solocron.web.guard import bearer, check_host
from solocron.web.metrics import Metrics
from solocron.web.operations import Conflict, Operations, UnknownLock
from solocron.web.seats import Full
from solocron.web.socket import Sockets
from solocron.web.ticks import Ticks

log = logging.getLogger("solocron.web")


class Clients(Protocol):
    """What clients meet of a service with a database."""

    @property
    def sockets(self) -> Sockets:
        """`/ws`."""

    @property
    def events(self) -> Events:
        """`/events`."""

    @property
    def api(self) -> StoresApi:
        """`/api/v1/stores`."""


Readiness = Callable[[], Awaitable[tuple[bool, Mapping[str, Any]]]]

_BACKLOG = 1024
_REQUEST_WITHIN_S = 10.0
_IDLE_S = 75.0  # longer than proxies keep a connection, which would meet the close with a request
_RETRY_AFTER_S = "5"
_PORT_IS_TAKEN = (
    "another process has the port, be it another worker of this application, for of several only "
    "one can have it: set SOLOCRON_PORT (0: any that is free), or leave this port to one "
    "`solocron serve` beside them"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def problem(status: int, title: str, detail: str) -> web.Response:
    """An error as application/problem+json (RFC 9457)."""
    body = {"type": "about:blank", "status": status, "title": title, "detail": detail}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_AFTER_S
    return web.Response(
        status=status, text=json.dumps(body, ensure_ascii=False), headers=headers,
        content_type="application/problem+json",
    )  # fmt: skip


def routes(
    *, authenticator: Authenticator, clients: Clients | None, operations: Operations,
    dashboard: Dashboard, metrics: Metrics, ticks: Ticks, readiness: Readiness,
) -> list[web.RouteDef]:  # fmt: skip
    """Every route, guarded on its own so that it can live in a host's application. `clients` is
    what only a service with a database has."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers=_HEADERS)

    async def readyz(request: web.Request) -> web.Response:
        ready, parts = await readiness()
        return web.json_response(
            {"ready": ready, **parts}, status=200 if ready else 503, headers=_HEADERS
        )

    def described(document: Mapping[str, Any]) -> Handler:
        async def handler(request: web.Request) -> web.Response:
            authenticator.authenticate(bearer(request))
            return web.json_response(document)

        return guarded(handler)

    def guarded(handler: Handler) -> Handler:
        return _guarded(handler, authenticator)

    return [
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", guarded(metrics.page)),
        web.get("/dashboard", guarded(dashboard.page)),
        web.post("/dashboard/token", guarded(dashboard.token)),
        web.get("/api/openapi.json", described(openapi.document())),
        web.get("/api/v1/jobs/{job}/ticks/{tick}", guarded(ticks.get)),
        *((web.route(method, path, guarded(each))) for method, path, each in operations.handlers()),
        *(_of_clients(clients, guarded, described) if clients else _of_none(guarded)),
    ]


def _of_clients(
    clients: Clients, guarded: Callable[[Handler], Handler],
    described: Callable[[Mapping[str, Any]], Handler],
) -> Iterator[web.RouteDef]:  # fmt: skip
    """The routes of stores, and of those who hear of them."""
    yield web.get("/api/asyncapi.json", described(asyncapi.document()))
    sockets, events, stores = clients.sockets, clients.events, clients.api
    yield web.get("/ws", guarded(sockets.handle), allow_head=False)
    yield web.get("/events", events.readable(guarded(events.handle)), allow_head=False)
    yield web.options("/events", events.readable(guarded(events.preflight)))
    yield web.get("/api/v1/stores", guarded(stores.list))
    yield web.get("/api/v1/stores/{id}", guarded(stores.get))
    yield web.put("/api/v1/stores/{id}", guarded(stores.put))
    yield web.post("/api/v1/stores/{id}/open", guarded(stores.open))
    yield web.post("/api/v1/stores/{id}/close", guarded(stores.close))
    for path, each in static.handlers():
        yield web.get(path, events.readable(guarded(each)))


def _of_none(guarded: Callable[[Handler], Handler]) -> Iterator[web.RouteDef]:
    """What says of these routes that there is no database for them."""

    async def refuse(request: web.Request) -> web.Response:
        raise NoDatabase(
            f"{request.path[:100]} needs a database, and this service has none (DATABASE_URL)"
        )

    for path in ("/ws", "/events", "/api/asyncapi.json", "/api/v1/stores", "/api/v1/stores/{_:.*}"):
        yield web.route("*", path, guarded(refuse))
    for path, each in static.handlers():
        yield web.get(path, guarded(each))


def _guarded(handler: Handler, authenticator: Authenticator) -> Handler:
    async def guard(request: web.Request) -> web.StreamResponse:
        try:
            if authenticator.is_open:
                check_host(request)
            response = await handler(request)
        except Exception as error:
            response = _answer(request, error)
        if not response.prepared:  # a WebSocket's or a stream's is
            for name, value in _HEADERS.items():  # a page may have its own
                response.headers.setdefault(name, value)
        return response

    return guard


def _answer(request: web.Request, error: Exception) -> web.Response:
    match error:
        case Unauthenticated():
            return problem(401, "Unauthenticated", str(error))
        case Forbidden():
            return problem(403, "Forbidden", str(error))
        case UnknownStore() | UnknownJob() | UnknownLock() | NoDatabase():
            return problem(404, "Not found", str(error))
        case StoresReadOnly():
            response = problem(405, "Method not allowed", str(error))
            response.headers["Allow"] = "GET,HEAD"
            return response
        case Conflict():
            return problem(409, "Conflict", str(error))
        case InvalidInput():
            return problem(422, "Invalid input", str(error))
        case Full():
            return problem(429, "Too many connections", str(error))
        case Draining():
            return problem(503, "Going away", str(error))
        case StorageUnavailable():
            return problem(503, "Unavailable", "the database is not reachable; try again later")
        case LockUnavailable():
            return problem(503, "Unavailable", "Redis does not answer; try again later")
        case web.HTTPException():
            return _problem_of(error)
    log.error("%s %s failed", request.method, request.rel_url.path, exc_info=error)
    return problem(500, "Internal error", "see the server's log")


def _problem_of(error: web.HTTPException) -> web.Response:
    response = problem(error.status, error.reason, (error.text or error.reason)[:300])
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


@web.middleware
def problems(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """For a server of our own: an unknown path or method, too, is answered as a problem.

    It waits for no known one: that would keep a frame for each WebSocket.
    """
    if request.match_info.http_exception is None:
        return handler(request)
    return _unknown(request, handler)


async def _unknown(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _problem_of(error)
        response.headers.update(_HEADERS)
        return response


def _http_log() -> logging.Logger:
    """aiohttp's log, without the requests that are no HTTP: anybody could fill it with those."""
    http = logging.getLogger("solocron.web.http")
    http.addFilter(_is_not_the_clients)
    return http


def _is_not_the_clients(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class WebServer:
    """An aiohttp server for `app` on host and port (0: any free one).

    A connection without a whole first request within 10 s is closed, and one that is idle, or slow
    with its next request, after 75 s.
    """

    def __init__(self, app: web.Application, *, host: str, port: int) -> None:
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_http_log(),
            shutdown_timeout=3.0,
            keepalive_timeout=_IDLE_S,
        )
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._waiting: dict[object, asyncio.TimerHandle] = {}  # those without a request so far
        app.middlewares.append(self._has_asked)

    async def start(self) -> None:
        """Start the application and listen. Raises ConfigError when it cannot, as when the port is
        not free."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        starting = asyncio.create_task(
            loop.create_server(self._accept, self._host, self._port, backlog=_BACKLOG)
        )
        try:
            self._server = await asyncio.shield(starting)
        except asyncio.CancelledError:  # cut short, it would leave its socket listening
            await asyncio.wait([starting])
            if starting.exception() is None:
                self._server = starting.result()
            raise
        except OSError as error:
            why, remedy = error.strerror or error, "set SOLOCRON_HOST and SOLOCRON_PORT"
            if error.errno == errno.EADDRINUSE:
                why, remedy = "address already in use", _PORT_IS_TAKEN
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {why}; {remedy}"
            ) from None
        log.info("listening on http://%s:%d", self._host, self.port)

    @property
    def port(self) -> int:
        """The port listened on; 0 before `start`."""
        sockets = self._server.sockets if self._server is not None else ()
        return int(sockets[0].getsockname()[1]) if sockets else 0

    async def stop(self) -> None:
        """Accept nothing more, drain the application and stop it. Safe to call twice."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _accept(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        protocol = self._runner.server()
        loop = asyncio.get_running_loop()
        self._waiting[protocol] = loop.call_later(_REQUEST_WITHIN_S, self._give_up, protocol)
        return protocol

    def _give_up(self, protocol: web.RequestHandler) -> None:
        del self._waiting[protocol]
        protocol.force_close()  # does nothing to one that is gone

    @web.middleware
    def _has_asked(self, request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        timer = self._waiting.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        return handler(request)
