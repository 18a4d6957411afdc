"""What browsers load: the client, a page that shows what it hears, and the dashboard's parts. These
files, and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files

from aiohttp import ETag, web

from solocron.web.events import Handler

TYPES = {
    "solocron.js": "text/javascript",
    "demo.html": "text/html",
    "demo.js": "text/javascript",
    "demo.css": "text/css",
    "dashboard.js": "text/javascript",
    "dashboard.css": "text/css",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # it may be kept, and is asked for by its ETag
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
}


def handlers() -> Iterator[tuple[str, Handler]]:
    """The path of each file and what answers with it: what is read here, once."""
    folder = files("solocron.web") / "static"
    for name, content_type in TYPES.items():
        yield f"/static/{name}", _handler((folder / name).read_bytes(), content_type)


def _handler(body: bytes, content_type: str) -> Handler:
    etag = hashlib.sha256(body).hexdigest()[:32]

    async def handle(request: web.Request) -> web.Response:
        known = request.if_none_match or ()
        is_known = any(each.value in (etag, "*") for each in known)
        response = web.Response(status=304 if is_known else 200, headers=_HEADERS)
        if not is_known:
            response.body = body
            response.content_type, response.charset = content_type, "utf-8"
        response.etag = ETag(etag)
        return response

    return handle
