"""REST for stores: list, get, put, open, close. A token sees and changes only its own stores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from solocron.clock import Clock
from solocron.errors import InvalidInput
from solocron.storage.outbox import Notification
from solocron.stores.model import Store, is_store_id, parse_store
from solocron.stores.repository import UnknownStore
from solocron.stores.service import MAX_PAGE, StoreService
from solocron.web.auth import Authenticator, Principal
from solocron.web.guard import bearer, check_origin, quoted

MAX_BODY = 64 * 1024
PAGE = 100
_BODY_WITHIN_S = 10.0


class StoresApi:
    """Handlers for `/api/v1/stores`. `publish` is told of notifications after their commit."""

    def __init__(
        self,
        stores: StoreService,
        *,
        authenticator: Authenticator,
        origins: frozenset[str],
        publish: Callable[[Sequence[Notification]], None],
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._authenticator = authenticator
        self._origins = origins
        self._publish = publish
        self._clock = clock

    async def list(self, request: web.Request) -> web.Response:
        """`?limit=100&after=<id>&open=true`: by id; `next` is the `after` of what follows."""
        principal = self._reader(request)
        contact = principal.may("stores:write")
        limit = whole(request.query.get("limit", str(PAGE)), "limit", MAX_PAGE)
        stores = await self._stores.page(
            after=_after(request.query.get("after")),
            limit=limit,
            is_open=_flag(request.query.get("open")),
            ids=principal.stores,
        )
        following = stores[-1].id if len(stores) == limit else None
        return web.json_response(
            {"stores": [_body(each, contact) for each in stores], "next": following}
        )

    async def get(self, request: web.Request) -> web.Response:
        """One store."""
        store_id = _store_id(request)
        contact = self._reader(request, store_id).may("stores:write")
        return web.json_response(_body(await self._stores.get(store_id), contact))

    async def put(self, request: web.Request) -> web.Response:
        """Create (201) or change (200) a store; whether it is open stays as it is."""
        store_id = request.match_info["id"]
        self._writer(request, store_id)
        fields = await json_of(request)
        if fields.setdefault("id", store_id) != store_id:
            raise InvalidInput(f"id {quoted(fields['id'])} is not the {store_id!r} of the path")
        if "is_open" in fields:
            raise InvalidInput("is_open is changed by POST .../open and .../close: leave it out")
        store = parse_store(fields)
        created = await self._stores.put(store, int(self._clock.now_ms()))
        saved = await self._stores.get(store_id)
        return web.json_response(_body(saved, True), status=201 if created else 200)

    async def open(self, request: web.Request) -> web.Response:
        """Open a store; its watchers hear of it unless it was open."""
        return await self._set_open(request, True)

    async def close(self, request: web.Request) -> web.Response:
        """Close a store; its watchers hear of it unless it was closed."""
        return await self._set_open(request, False)

    async def _set_open(self, request: web.Request, is_open: bool) -> web.Response:
        store_id = _store_id(request)
        self._writer(request, store_id)
        now = int(self._clock.now_ms())
        store, notifications = await self._stores.set_open(store_id, is_open, now)
        self._publish(notifications)
        return web.json_response(_body(store, True))

    def _reader(self, request: web.Request, store_id: str | None = None) -> Principal:
        principal = self._authenticator.authenticate(bearer(request))
        if not principal.may("stores:write"):
            principal.require("notifications:read")
        if store_id is not None:
            principal.require_store(store_id)
        return principal

    def _writer(self, request: web.Request, store_id: str) -> None:
        check_origin(request, self._origins)
        principal = self._authenticator.authenticate(bearer(request))
        principal.require("stores:write")
        principal.require_store(store_id)


def _store_id(request: web.Request) -> str:
    store_id = request.match_info["id"]
    if not is_store_id(store_id):
        raise UnknownStore(f"store {store_id[:64]!r}: there is none with that id")
    return store_id


def _body(store: Store, contact: bool) -> dict[str, Any]:
    """A store as JSON; its contact is for those who may write it, not for all who watch it."""
    body = {
        "id": store.id, "name": store.name, "timezone": store.timezone, "hours": store.hours,
        "country": store.country, "is_open": store.is_open,
        "notification_seq": store.notification_seq,
    }  # fmt: skip
    return {**body, "contact": store.contact} if contact else body


async def json_of(request: web.Request) -> dict[str, Any]:
    """The object in the request's body, of at most MAX_BODY bytes. Raises InvalidInput."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            async for chunk in request.content.iter_any():  # a host's application may allow more
                body += chunk
                if len(body) > MAX_BODY:
                    raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(body))
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"no whole body within {_BODY_WITHIN_S:g} s") from None
    try:
        fields = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not JSON in UTF-8: send an object") from None
    if not isinstance(fields, dict):
        raise InvalidInput(f"the body is a {type(fields).__name__}: send a JSON object")
    return fields


def whole(text: str, name: str, most: int) -> int:
    """A parameter that is a whole number from 1 to `most`. Raises InvalidInput."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise InvalidInput(f"{name} is {text[:40]!r}: give a whole number from 1 to {most}")
    return int(text)


def _after(text: str | None) -> str | None:
    if text is not None and not is_store_id(text):
        raise InvalidInput(f"after is {text[:64]!r}: give a store id")
    return text


def _flag(text: str | None) -> bool | None:
    if text not in (None, "true", "false"):
        raise InvalidInput(f"open is {text[:40]!r}: give true or false")
    return None if text is None else text == "true"
