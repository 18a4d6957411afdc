"""What this server says of itself: the OpenAPI 3.1 document of its routes.

Names and limits come from the code that keeps to them, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solocron.notifications.contact import MAX_CONTACT
from solocron.stores.hours import COUNTRY_PATTERN, MAX_HOURS_BYTES, MAX_ZONE
from solocron.stores.model import FIELDS, ID_PATTERN, MAX_NAME, REQUIRED
from solocron.stores.repository import MAX_PAGE
from solocron.web.api import MAX_BODY, PAGE
from solocron.web.events import MAX_STORES
from solocron.web.static import TYPES
from solocron.web.ticks import explanation_schema

_PROBLEMS = {
    400: "The request is not HTTP as it should be.",
    401: "There is no token, or it is refused.",
    403: "The token does not allow this, or a page of this origin may not ask.",
    404: "There is no such store or job.",
    408: "The body did not come in time.",
    413: f"The body is over {MAX_BODY} bytes.",
    422: "A value is wrong: `detail` names it and the remedy.",
    429: "There are too many connections, of the token, the address or in all.",
    503: "The database is not reachable, or the server is going away; try again later.",
}
_GUARDED = (400, 401, 403)

Schema = dict[str, Any]


def document() -> dict[str, Any]:
    """The document, as JSON's values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "solocron",
            "version": "1",
            "summary": "Stores, their notifications, and the health of the jobs.",
        },
        "security": [{"token": []}],
        "paths": {**_stores(), **_store(), **_ticks(), **_events(), **_others(), **_static()},
        "components": {
            "schemas": {
                "Store": _object(_store_fields(), optional=("contact",)),
                "StoreInput": _object(_input_fields(), optional=("id", "country", "contact")),
                "Stores": _object(
                    {
                        "stores": {"type": "array", "maxItems": MAX_PAGE, "items": _ref("Store")},
                        "next": {**_ID, "type": ["string", "null"]},
                    }
                ),
                "Explanation": explanation_schema(),
                "Problem": _object(
                    {
                        "type": {"type": "string"},
                        "status": {"type": "integer"},
                        "title": {"type": "string"},
                        "detail": {"type": "string"},
                    }
                ),
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "password": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The token as the password, for browsers.",
                },
            },
        },
    }


# -- schemas -----------------------------------------------------------------------------------

_ID: Schema = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
_TEXT: Schema = {"type": "string"}


def _input_fields() -> dict[str, Schema]:
    """The fields that a client may write: all but whether the store is open."""
    about = {
        "id": {**_ID, "description": "That of the path, if it is given at all."},
        "name": {**_TEXT, "minLength": 1, "maxLength": MAX_NAME},
        "timezone": {**_TEXT, "minLength": 1, "maxLength": MAX_ZONE,
                     "description": "IANA name, such as Europe/Berlin."},
        "hours": {**_TEXT, "minLength": 1, "maxLength": MAX_HOURS_BYTES,
                  "description": "OpenStreetMap opening hours, one line; the limit is in bytes."},
        "country": {**_TEXT, "pattern": f"^({COUNTRY_PATTERN})?$",
                    "description": "For public holidays; empty if unknown."},
        "contact": {**_TEXT, "maxLength": MAX_CONTACT,
                    "description": "Email address or phone number; empty if unknown."},
    }  # fmt: skip
    return {name: about[name] for name in FIELDS if name != "is_open"}


def _store_fields() -> dict[str, Schema]:
    return {
        **{name: {**_TEXT} for name in REQUIRED},
        "country": _TEXT,
        "is_open": {"type": "boolean"},
        "notification_seq": {"type": "integer", "minimum": 0},
        "contact": {**_TEXT, "description": "For tokens with stores:write."},
    }


def _object(fields: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": [each for each in fields if each not in optional],
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# -- operations --------------------------------------------------------------------------------


def _answers(good: Mapping[int, tuple[str, Schema | None]], *problems: int) -> dict[str, Any]:
    """Responses by status: the good ones with a description and a JSON schema, then problems."""
    answers: dict[str, Any] = {}
    for status, (text, schema) in good.items():
        content = {} if schema is None else {"application/json": {"schema": schema}}
        answers[str(status)] = {"description": text, **({"content": content} if content else {})}
    for status in problems:
        answers[str(status)] = {
            "description": _PROBLEMS[status],
            "content": {"application/problem+json": {"schema": _ref("Problem")}},
        }
    return answers


def _query(name: str, schema: Schema, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _stores() -> dict[str, Any]:
    whole = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE}
    return {
        "/api/v1/stores": {
            "get": {
                "summary": "The stores the token is for, by id.",
                "parameters": [
                    _query("limit", whole, "At most so many."),
                    _query("after", _ID, "Only ids after this one: the `next` of the page before."),
                    _query("open", {"type": "boolean"}, "Only open ones, or only closed ones."),
                ],
                "responses": _answers({200: ("A page.", _ref("Stores"))}, *_GUARDED, 422, 503),
            }
        }
    }


def _store() -> dict[str, Any]:
    parameters = [{"name": "id", "in": "path", "required": True, "schema": _ID}]
    store = ("The store.", _ref("Store"))
    path = "/api/v1/stores/{id}"

    def action(name: str) -> dict[str, Any]:
        return {
            "parameters": parameters,
            "post": {
                "summary": f"{name} a store; its watchers hear of it if that changes it.",
                "responses": _answers({200: store}, *_GUARDED, 404, 503),
            },
        }

    body = {"required": True, "content": {"application/json": {"schema": _ref("StoreInput")}}}
    put = {200: store, 201: ("The store is new.", _ref("Store"))}
    return {
        path: {
            "parameters": parameters,
            "get": {
                "summary": "One store.",
                "responses": _answers({200: store}, *_GUARDED, 404, 503),
            },
            "put": {
                "summary": "Create or change a store; whether it is open stays as it is.",
                "requestBody": body,
                "responses": _answers(put, *_GUARDED, 408, 413, 422, 503),
            },
        },
        f"{path}/open": action("Open"),
        f"{path}/close": action("Close"),
    }


def _ticks() -> dict[str, Any]:
    job = {"name": "job", "in": "path", "required": True, "schema": _TEXT}
    text = "UTC epoch ms, ISO 8601 (in the job's zone unless it has one), or `latest`."
    tick = {"name": "tick", "in": "path", "required": True, "schema": _TEXT, "description": text}
    found = {200: ("What became of the tick.", _ref("Explanation"))}
    return {
        "/api/v1/jobs/{job}/ticks/{tick}": {
            "parameters": [job, tick],
            "get": {
                "summary": "Why a tick was run, or was not: for jobs:run or metrics:read.",
                "responses": _answers(found, *_GUARDED, 404, 422, 503),
            },
        }
    }


def _events() -> dict[str, Any]:
    items = {"type": "string", "minLength": 1}
    text = (
        "Ids, or * for all stores with a token for all, each if need be with ':' and the last seq "
        "seen. A Last-Event-ID counts before that; without either come only new ones."
    )
    stores = {
        **_query("stores", {"type": "array", "maxItems": MAX_STORES, "items": items}, text),
        "required": True, "style": "form", "explode": False,
    }  # fmt: skip
    last = {"type": "string", "description": "The id of the last event: resume after it."}
    stream = {"description": "Events without end.", "content": {"text/event-stream": {}}}
    return {
        "/events": {
            "get": {
                "summary": "Notifications as Server-Sent Events.",
                "parameters": [
                    stores,
                    {"name": "Last-Event-ID", "in": "header", "schema": last},
                    _query("lastEventId", last, "The same, where a client cannot set headers."),
                ],
                "responses": {"200": stream, **_answers({}, *_GUARDED, 404, 422, 429, 503)},
            },
            "options": {
                "summary": "What a browser asks before a page of another origin may do so.",
                "security": [],
                "responses": _answers({204: ("It may.", None)}, 400, 403),
            },
        }
    }


def _others() -> dict[str, Any]:
    state = {"type": "object"}
    asked = {"description": "A browser asks for the token.", "content": {"text/plain": {}}}
    page = {"description": "The page.", "content": {"text/html": {}}}
    formats = ("text/plain", "application/openmetrics-text")
    metrics = {"description": "The metrics.", "content": {each: {} for each in formats}}
    return {
        "/api/openapi.json": {
            "get": {
                "summary": "This document, for any good token.",
                "responses": _answers({200: ("The document.", state)}, *_GUARDED),
            }
        },
        "/api/asyncapi.json": {
            "get": {
                "summary": "The AsyncAPI document of /ws, for any good token.",
                "responses": _answers({200: ("The document.", state)}, *_GUARDED),
            }
        },
        "/dashboard": {
            "get": {
                "summary": "How each job and lock is, for tokens with jobs:run.",
                "security": [{"token": []}, {"password": []}],
                "responses": {"200": page, "401": asked, **_answers({}, 400, 403, 503)},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus, for tokens with metrics:read.",
                "responses": {"200": metrics, **_answers({}, *_GUARDED)},
            }
        },
        "/healthz": {
            "get": {
                "summary": "Whether the process answers.",
                "security": [],
                "responses": _answers({200: ("It does.", state)}, 400),
            }
        },
        "/readyz": {
            "get": {
                "summary": "Whether this server should get traffic.",
                "security": [],
                "responses": _answers({200: ("Yes.", state), 503: ("No.", state)}, 400),
            }
        },
        "/ws": {
            "get": {
                "summary": "A WebSocket of notifications, subprotocol solocron.v1.",
                "description": "The token comes in the Authorization header or the first frame; "
                "/api/asyncapi.json describes the frames.",
                "security": [{}, {"token": []}],
                "responses": _answers({101: ("The WebSocket is open.", None)}, 400, 403),
            }
        },
    }


def _static() -> dict[str, Any]:
    """The files for browsers, which load them before there is a token."""
    about = {
        "solocron.js": "A client of /ws for browsers, an ES module.",
        "demo.html": "A page that shows notifications by it.",
    }
    etag = {"type": "string", "description": "The ETag of what the client has."}
    return {
        f"/static/{name}": {
            "get": {
                "summary": about.get(name, "A part of that page."),
                "security": [],
                "parameters": [{"name": "If-None-Match", "in": "header", "schema": etag}],
                "responses": {
                    "200": {"description": "The file.", "content": {content_type: {}}},
                    **_answers({304: ("The client has it already.", None)}, 400, 403),
                },
            }
        }
        for name, content_type in TYPES.items()
    }
