"""What this server says of itself: the OpenAPI 3.1 document of its routes.

Names and limits come from the code that keeps to them, so that they cannot differ.
"""

from __future__ import annotations

from typing import Any

from solocron.notifications.contact import MAX_CONTACT
from solocron.stores.hours import COUNTRY_PATTERN, MAX_HOURS_BYTES, MAX_ZONE
from solocron.stores.model import FIELDS, ID_PATTERN, MAX_NAME, REQUIRED
from solocron.stores.service import MAX_PAGE
from solocron.web import operations_openapi
from solocron.web.api import PAGE
from solocron.web.events import MAX_STORES
from solocron.web.schemas import GUARDED, Schema, answers, query, record, ref
from solocron.web.static import TYPES
from solocron.web.ticks import explanation_schema


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
        "paths": {
            **_stores(),
            **_store(),
            **_ticks(),
            **_events(),
            **_others(),
            **_probes(),
            **_static(),
            **operations_openapi.paths(),
        },
        "components": {
            "schemas": {
                "Store": record(_store_fields(), optional=("contact",)),
                "StoreInput": record(_input_fields(), optional=("id", "country", "contact")),
                "Stores": record(
                    {
                        "stores": {"type": "array", "maxItems": MAX_PAGE, "items": ref("Store")},
                        "next": {**_ID, "type": ["string", "null"]},
                    }
                ),
                "Explanation": explanation_schema(),
                **operations_openapi.schemas(),
                "Problem": record(
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


# -- operations --------------------------------------------------------------------------------


def _stores() -> dict[str, Any]:
    whole = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE}
    return {
        "/api/v1/stores": {
            "get": {
                "summary": "The stores the token is for, by id.",
                "parameters": [
                    query("limit", whole, "At most so many."),
                    query("after", _ID, "Only ids after this one: the `next` of the page before."),
                    query("open", {"type": "boolean"}, "Only open ones, or only closed ones."),
                ],
                "responses": answers({200: ("A page.", ref("Stores"))}, *GUARDED, 422, 503),
            }
        }
    }


def _store() -> dict[str, Any]:
    parameters = [{"name": "id", "in": "path", "required": True, "schema": _ID}]
    store = ("The store.", ref("Store"))
    path = "/api/v1/stores/{id}"

    def action(name: str) -> dict[str, Any]:
        return {
            "parameters": parameters,
            "post": {
                "summary": f"{name} a store; its watchers hear of it if that changes it.",
                "responses": answers({200: store}, *GUARDED, 404, 503),
            },
        }

    body = {"required": True, "content": {"application/json": {"schema": ref("StoreInput")}}}
    put = {200: store, 201: ("The store is new.", ref("Store"))}
    return {
        path: {
            "parameters": parameters,
            "get": {
                "summary": "One store.",
                "responses": answers({200: store}, *GUARDED, 404, 503),
            },
            "put": {
                "summary": "Create or change a store; whether it is open stays as it is.",
                "requestBody": body,
                "responses": answers(put, *GUARDED, 405, 408, 413, 422, 503),
            },
        },
        f"{path}/open": action("Open"),
        f"{path}/close": action("Close"),
    }


def _ticks() -> dict[str, Any]:
    job = {"name": "job", "in": "path", "required": True, "schema": _TEXT}
    text = "UTC epoch ms, ISO 8601 (in the job's zone unless it has one), or `latest`."
    tick = {"name": "tick", "in": "path", "required": True, "schema": _TEXT, "description": text}
    found = {200: ("What became of the tick.", ref("Explanation"))}
    return {
        "/api/v1/jobs/{job}/ticks/{tick}": {
            "parameters": [job, tick],
            "get": {
                "summary": "Why a tick was run, or was not: for jobs:run or metrics:read.",
                "responses": answers(found, *GUARDED, 404, 422, 503),
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
        **query("stores", {"type": "array", "maxItems": MAX_STORES, "items": items}, text),
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
                    query("lastEventId", last, "The same, where a client cannot set headers."),
                ],
                "responses": {"200": stream, **answers({}, *GUARDED, 404, 422, 429, 503)},
            },
            "options": {
                "summary": "What a browser asks before a page of another origin may do so.",
                "security": [],
                "responses": answers({204: ("It may.", None)}, 400, 403),
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
                "responses": answers({200: ("The document.", state)}, *GUARDED),
            }
        },
        "/api/asyncapi.json": {
            "get": {
                "summary": "The AsyncAPI document of /ws, for any good token.",
                "responses": answers({200: ("The document.", state)}, *GUARDED),
            }
        },
        "/dashboard": {
            "get": {
                "summary": "How the fleet is, for tokens with jobs:run or metrics:read.",
                "security": [{"token": []}, {"password": []}],
                "responses": {"200": page, "401": asked, **answers({}, 400, 403, 503)},
            }
        },
        "/dashboard/token": {
            "post": {
                "summary": "A token that listens for a minute, for the page's script.",
                "description": "It is '' where the server cannot sign one. With a password only a "
                "page of this host may ask.",
                "security": [{"token": []}, {"password": []}],
                "responses": answers({200: ("The token.", state)}, *GUARDED),
            }
        },
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus, for tokens with metrics:read.",
                "responses": {"200": metrics, **answers({}, *GUARDED)},
            }
        },
        "/ws": {
            "get": {
                "summary": "A WebSocket of notifications, subprotocol solocron.v1.",
                "description": "The token comes in the Authorization header or the first frame; "
                "/api/asyncapi.json describes the frames.",
                "security": [{}, {"token": []}],
                "responses": answers({101: ("The WebSocket is open.", None)}, 400, 403),
            }
        },
    }


def _probes() -> dict[str, Any]:
    state = {"type": "object"}
    return {
        "/healthz": {
            "get": {
                "summary": "Whether the process answers.",
                "security": [],
                "responses": answers({200: ("It does.", state)}, 400),
            }
        },
        "/readyz": {
            "get": {
                "summary": "Whether this server should get traffic.",
                "security": [],
                "responses": answers({200: ("Yes.", state), 503: ("No.", state)}, 400),
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
                "summary": about.get(name, "A part of a page."),
                "security": [],
                "parameters": [{"name": "If-None-Match", "in": "header", "schema": etag}],
                "responses": {
                    "200": {"description": "The file.", "content": {content_type: {}}},
                    **answers({304: ("The client has it already.", None)}, 400, 403),
                },
            }
        }
        for name, content_type in TYPES.items()
    }
