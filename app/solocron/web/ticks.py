"""REST: why a tick was run, or was not."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from solocron.cron.inquiry import Inquiry
from solocron.web.auth import Authenticator
from solocron.web.guard import own_page_token, require_reader


class Ticks:
    """Handles `/api/v1/jobs/{job}/ticks/{tick}`, for tokens that may run jobs or read metrics."""

    def __init__(self, inquiry: Inquiry, authenticator: Authenticator) -> None:
        self._inquiry = inquiry
        self._authenticator = authenticator

    async def get(self, request: web.Request) -> web.Response:
        """The explanation; `tick` is UTC epoch ms, ISO 8601, or `latest`."""
        require_reader(self._authenticator.authenticate(own_page_token(request)))
        asked = request.match_info
        return web.json_response(await self._inquiry.explain(asked["job"], asked["tick"]))


def explanation_schema() -> dict[str, Any]:
    """The JSON schema of an explanation. Times are UTC epoch ms."""
    text, flag = {"type": "string"}, {"type": "boolean"}
    ms = {"type": "integer", "description": "UTC epoch ms, or a time in ms."}
    maybe_ms = {"type": ["integer", "null"]}
    maybe_text = {"type": ["string", "null"]}
    return _whole(
        job=text, tick=ms, local_time=text, schedule=text, zone=text, is_tick=flag,
        previous_tick=maybe_ms, next_tick=ms, state=text, text=text, remedy=text, redis=text,
        database=text,
        notes={"type": "array", "items": _whole(about=text, text=text, remedy=text)},
        ledger=_or_null(
            state=text, attempt=ms, owner=text, origin=text, asked_by=maybe_text, fallback=flag,
            started_at=ms, finished_at=maybe_ms, duration_ms=maybe_ms, error=maybe_text,
            counts={"type": "object"}, params={"type": ["object", "null"]}, result={},
            progress={"type": ["object", "null"]},
        ),
        lock=_or_null(owner=text, ttl_ms=ms, silent=flag),
        pause=_or_null(until=ms, by=text, since=maybe_ms),
        workers={
            "type": "array",
            "items": _whole(
                worker=text, verdict=maybe_text, alive=flag, text=text, remedy=text,
                late_ms=maybe_ms, duration_ms=maybe_ms, at=maybe_ms,
            ),
        },
    )  # fmt: skip


def _whole(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields],
            "additionalProperties": False}  # fmt: skip


def _or_null(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [_whole(**fields), {"type": "null"}]}
