"""Real services for the channels of the tests to send to: an SMTP server and an HTTP one."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

Verdict = Callable[[EmailMessage], Awaitable[str]]


def joe(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    """Lets in joe, whose password is s3cret."""
    return AuthResult(success=data == LoginPassword(b"joe", b"s3cret"), handled=True)


class MailServer:
    """Keeps every message it took. `verdict` decides on one, `refuse` on recipients."""

    def __init__(self) -> None:
        self.port = 0
        self.taken: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.tries = 0
        self.refuse: dict[str, str] = {}
        self.verdict: Verdict = self._take

    async def _take(self, message: EmailMessage) -> str:
        return "250 OK"

    async def handle_RCPT(  # the server's own name for it
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.tries += 1
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=policy.default)
        answer = await self.verdict(message)
        if answer.startswith("250"):
            self.taken.append(message)
            self.recipients.append(list(envelope.rcpt_tos))
        return answer

    @property
    def ids(self) -> Counter[str]:
        """How often each Message-ID was taken."""
        return Counter(str(message["Message-ID"]) for message in self.taken)

    def url(self, rest: str = "?to=ops@example.com") -> str:
        """An Apprise URL for it, with recipients."""
        return f"mailto://127.0.0.1:{self.port}/{rest}&from=solocron@example.com"


@asynccontextmanager
async def mail_server(
    tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[MailServer]:
    """An SMTP server; `tls` is for TLS from the first byte on, `options` are aiosmtpd's."""
    mail = MailServer()
    loop = asyncio.get_running_loop()

    def protocol() -> asyncio.Protocol:
        server: asyncio.Protocol = SMTP(mail, loop=loop, hostname="localhost", **options)  # type: ignore[no-untyped-call]  # untyped library
        return server

    async with serving(protocol, tls) as mail.port:
        yield mail


@asynccontextmanager
async def serving(
    protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A TCP server on the port this yields, whose connections are closed with it."""
    transports: list[asyncio.BaseTransport] = []

    def connected() -> asyncio.Protocol:
        made = protocol()
        before = made.connection_made

        def connection_made(transport: asyncio.BaseTransport) -> None:
            transports.append(transport)
            before(transport)

        made.connection_made = connection_made  # type: ignore[method-assign]  # to know them all
        return made

    server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for transport in transports:
            transport.close()
        await server.wait_closed()


class HttpServer:
    """Keeps every JSON body it answered 200 to, and the path of each request it got; `status`
    decides on one. It hangs while `answers` is not set."""

    def __init__(self) -> None:
        self.port = 0
        self.taken: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.status: Callable[[], int] = lambda: 200

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.paths.append(request.path_qs)
        await self.answers.wait()
        body = json.loads(text) if text else None
        status = self.status()
        if status == 200 and body is not None:
            self.taken.append(body)
        return web.Response(status=status, reason=f"no: {request.path}")

    @property
    def last_lines(self) -> Counter[str]:
        """How often each notification was taken, by the last line of its text."""
        return Counter(body["message"].splitlines()[-1] for body in self.taken)


@asynccontextmanager
async def http_server() -> AsyncIterator[HttpServer]:
    http = HttpServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", http.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    http.port = runner.addresses[0][1]
    try:
        yield http
    finally:
        http.answers.set()
        await runner.cleanup()
