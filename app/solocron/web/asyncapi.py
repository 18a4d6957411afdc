"""What this server says of its WebSocket: the AsyncAPI 3.0 document of `/ws`.

The frames' schemas are made of the types that the code builds them with, and their limits of its
constants, so that they cannot differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from solocron.notifications.client import MAX_PENDING_BYTES
from solocron.notifications.event import (
    OURS,
    STORE_CLOSED,
    STORE_OPEN_REMINDER,
    STORE_OPENED,
    TYPE_PATTERN,
    CloudEvent,
    cloud_event,
)
from solocron.notifications.hub import Subscribed
from solocron.storage.feed import EVERY
from solocron.storage.outbox import Notification
from solocron.stores.model import ID_PATTERN
from solocron.stores.told import DATA, AskedFor, HoursBegan, HoursEnded
from solocron.web import frames, session
from solocron.web.auth import MAX_TOKEN
from solocron.web.connections import GOING_AWAY, UNAUTHENTICATED

Schema = dict[str, Any]

_PREFIX = "#/components/schemas/"
_OWN = "ownEvent"  # of any type that a host has made up
_CHANNEL = {"$ref": "#/channels/notifications"}
_TOO_BIG = 1009  # the WebSocket library closes with it
_CLOSE_CODES = {
    GOING_AWAY: "The server goes away: reconnect after the `reconnect-after-ms=NNN` of the reason, "
    "or at once where there is none, and resume.",
    session.POLICY: "Too many frames could not be used.",
    _TOO_BIG: f"A frame is over {session.MAX_FRAME} bytes.",
    session.INTERNAL: "The server failed: reconnect later, and resume.",
    UNAUTHENTICATED: "There is no token, or it is refused or has expired: reconnect with "
    "another one, and resume.",
    session.FORBIDDEN: "The token is without the scope notifications:read.",
    session.SLOW: f"Over {MAX_PENDING_BYTES} bytes wait for this client: reconnect, and resume.",
    session.TOO_MANY: "The server, the token or the address has too many connections: reconnect "
    "later.",
}
_SECURITY = {
    "header": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The token in the request's Authorization header.",
    },
    "frame": {
        "type": "apiKey",
        "in": "password",
        "description": "The token in the first frame, `authenticate`, for clients that cannot set "
        "a header.",
    },
}
_ABOUT = f"""\
Subscribe to stores by id, each with the seq last seen, or null for only new notifications; or to
`{EVERY}`, all stores, by the number last seen in the feed. What was missed comes first, then what
is new, each once and in order of each store. Reconnect with the last seqs seen, to any server:
nothing is lost or doubled. Ignore types and attributes you do not know.

A frame is a text frame of at most {session.MAX_FRAME} bytes. The server pings; a client that cannot
see that can send `ping`.

Close codes:
"""


def document() -> dict[str, Any]:
    """The document, as JSON's values."""
    messages = _messages()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "solocron",
            "version": "1",
            "description": "Notifications of stores, over a WebSocket.",
        },
        "defaultContentType": "application/json",
        "servers": {"plain": _server("ws"), "tls": _server("wss")},
        "channels": {"notifications": _channel(messages)},
        "operations": _operations(),
        "components": {
            "schemas": _schemas(),
            "messages": messages,
            "securitySchemes": _SECURITY,
        },
    }


def _server(protocol: str) -> dict[str, Any]:
    return {
        "host": "{host}",
        "protocol": protocol,
        "variables": {"host": {"default": "localhost:8080", "description": "Host and port."}},
        "security": [{"$ref": f"#/components/securitySchemes/{each}"} for each in _SECURITY],
    }


def _channel(names: Iterable[str]) -> dict[str, Any]:
    codes = "".join(f"- {code}: {text}\n" for code, text in _CLOSE_CODES.items())
    headers = {
        "type": "object",
        "properties": {
            "Sec-WebSocket-Protocol": {"type": "string", "const": session.PROTOCOL},
            "Authorization": {"type": "string", "pattern": "^[Bb]earer "},
        },
    }
    return {
        "address": "/ws",
        "title": f"Notifications, subprotocol {session.PROTOCOL}",
        "description": _ABOUT + codes,
        "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in names},
        "bindings": {"ws": {"method": "GET", "headers": headers, "bindingVersion": "0.1.0"}},
        "x-close-codes": {str(code): text for code, text in _CLOSE_CODES.items()},
    }


# -- operations ------------------------------------------------------------------------------


def _operations() -> dict[str, Any]:
    """What is sent and received, as AsyncAPI has it: by the server."""
    return {
        "authenticate": _asked(
            "authenticate",
            "Say who you are, first of all, unless the request had a token; or renew the token.",
            "authenticated",
        ),
        "subscribe": _asked("subscribe", "Hear of stores.", "subscribed"),
        "unsubscribe": _asked("unsubscribe", "Hear of stores no more.", "unsubscribed"),
        "ping": _asked("ping", "Find out whether the server is there.", "pong"),
        "notify": _sent(
            [*(_key(each) for each in DATA), _OWN], "A store that is watched has news."
        ),
        "skip": _sent(
            ["subscribed"],
            "The history was pruned under the client: `recovered` is false, and the store goes on "
            "after `seq`.",
        ),
        "revoke": _sent(["unsubscribed"], "A renewed token is not for these stores."),
        "refuse": _sent(["error"], "A frame is none of these, or not JSON."),
    }


def _asked(name: str, summary: str, answer: str) -> dict[str, Any]:
    reply = {"channel": _CHANNEL, "messages": [_of_channel(answer), _of_channel("error")]}
    return {
        "action": "receive",
        "channel": _CHANNEL,
        "summary": summary,
        "messages": [_of_channel(name)],
        "reply": reply,
    }


def _sent(names: Iterable[str], summary: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": _CHANNEL,
        "summary": summary,
        "messages": [_of_channel(each) for each in names],
    }


def _of_channel(message: str) -> dict[str, str]:
    return {"$ref": f"#/channels/notifications/messages/{message}"}


def _key(type_: str) -> str:
    """A notification's type as a name within the document: `store.open-reminder` is
    `storeOpenReminder`."""
    first, *others = type_.replace("-", ".").split(".")
    return first + "".join(each.capitalize() for each in others)


def _schema_of(message: str) -> str:
    return message[0].upper() + message[1:]


# -- messages --------------------------------------------------------------------------------


def _messages() -> dict[str, Any]:
    """Each message, with examples that are values of the type it has in the code."""
    authenticate: frames.Authenticate = {"type": "authenticate", "token": "eyJhbGciOi..."}
    subscribe: frames.Subscribe = {"type": "subscribe", "stores": {"42": 17, "43": None}}
    all_stores: frames.Subscribe = {"type": "subscribe", "stores": {EVERY: 4711}}
    unsubscribe: frames.Unsubscribe = {"type": "unsubscribe", "stores": ["42"]}
    ping: frames.Ping = {"type": "ping"}
    authenticated: frames.Authenticated = {"type": "authenticated", "expires_in": 3600}
    subscribed: Subscribed = {
        "type": "subscribed", "stores": {"42": {"seq": 19, "recovered": True}},
    }  # fmt: skip
    unsubscribed: frames.Unsubscribed = {"type": "unsubscribed", "stores": ["42"]}
    pong: frames.Pong = {"type": "pong"}
    error: frames.Error = {
        "type": "error", "code": "forbidden", "message": "this token is not for these stores",
        "stores": ["43"],
    }  # fmt: skip
    answers: dict[str, list[Any]] = {
        "authenticate": [authenticate],
        "subscribe": [subscribe, all_stores],
        "unsubscribe": [unsubscribe],
        "ping": [ping],
        "authenticated": [authenticated],
        "subscribed": [subscribed],
        "unsubscribed": [unsubscribed],
        "pong": [pong],
        "error": [error],
    }
    events = {_key(type_): examples for type_, examples in _event_examples().items()}
    events[_OWN] = [_event_of("order.placed", {"order": 4711})]
    return {
        name: {
            "name": name,
            "payload": {"$ref": _PREFIX + _schema_of(name)},
            "examples": [{"payload": each} for each in examples],
        }
        for name, examples in {**answers, **events}.items()
    }


def _event_examples() -> dict[str, list[Any]]:
    tick = "2026-04-24T06:00:00.000Z"
    ended: HoursEnded = {"name": "Mitte", "reason": "hours-ended", "tick": tick}
    asked: AskedFor = {"name": "Mitte", "reason": "api"}
    began: HoursBegan = {"name": "Mitte", "tick": tick}

    return {
        STORE_CLOSED: [_event_of(STORE_CLOSED, ended), _event_of(STORE_CLOSED, asked, feed=4712)],
        STORE_OPENED: [_event_of(STORE_OPENED, asked)],
        STORE_OPEN_REMINDER: [_event_of(STORE_OPEN_REMINDER, began)],
    }


def _event_of(type_: str, data: Mapping[str, Any], feed: int | None = None) -> Any:
    row = Notification("42", 18, type_, data, 1_777_010_400_123, feed)
    return json.loads(cloud_event(row))


# -- schemas ---------------------------------------------------------------------------------

_TOPIC: Schema = {"type": "string", "pattern": rf"^(?:{ID_PATTERN}|\{EVERY})$"}
_SEQ: Schema = {"minimum": 0, "maximum": frames.MAX_SEQ}
_NUMBER: Schema = {"pattern": "^[0-9]{20}$"}
_TIME: Schema = {
    "format": "date-time",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
}
# CloudEvents' rule for the attributes of extensions, of which there may be more.
_EXTENSIONS: Schema = {
    "propertyNames": {"pattern": "^[a-z0-9]+$"},
    "additionalProperties": {"type": ["string", "boolean", "integer"]},
}
_TYPES: tuple[Any, ...] = (
    frames.Authenticate, frames.Subscribe, frames.Unsubscribe, frames.Ping, frames.Authenticated,
    Subscribed, frames.Unsubscribed, frames.Pong, frames.Error, CloudEvent,
)  # fmt: skip


class _Plain(GenerateJsonSchema):
    """Schemas in the words that JSON Schema draft 07, AsyncAPI's own, has too; without a title for
    each field."""

    def field_title_should_be_set(self, schema: Any) -> Literal[False]:
        return False


def _schemas() -> dict[str, Schema]:
    types = {**{each.__name__: each for each in _TYPES}, **DATA}
    references, generated = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(type_)) for name, type_ in types.items()],
        ref_template=_PREFIX + "{model}", schema_generator=_Plain,
    )  # fmt: skip
    schemas: dict[str, Schema] = generated["$defs"]
    for schema in schemas.values():
        schema["description"] = " ".join(schema.get("description", "").split())
        schema["additionalProperties"] = False
    _limit({name: schema["properties"] for name, schema in schemas.items()})
    event = schemas.pop("CloudEvent")
    event.update(_EXTENSIONS)
    for type_ in DATA:
        named = {"type": "string", "const": type_}
        schemas[_schema_of(_key(type_))] = _event(
            event, type_, named, references[type_, "validation"]
        )
    any_other = {"type": "string", "pattern": f"^(?!{re.escape(OURS)}){TYPE_PATTERN}$"}
    schemas[_schema_of(_OWN)] = _event(event, "of a host's own", any_other, {"type": "object"})
    return schemas


def _limit(fields: Mapping[str, Mapping[str, Schema]]) -> None:
    """Add what the types do not say: how large and how long, and of which letters."""
    fields["Authenticate"]["token"] |= {"minLength": 1, "maxLength": MAX_TOKEN}
    wanted = fields["Subscribe"]["stores"]
    wanted |= {"minProperties": 1, "maxProperties": frames.MAX_STORES, "propertyNames": _TOPIC}
    wanted["additionalProperties"]["anyOf"][0] |= _SEQ
    fields["Unsubscribe"]["stores"]["items"] = _TOPIC
    fields["Authenticated"]["expires_in"]["anyOf"][0]["minimum"] = 0
    fields["Subscribed"]["stores"]["propertyNames"] = _TOPIC
    fields["Position"]["seq"] |= _SEQ
    fields["Error"]["stores"] |= {"items": _TOPIC, "maxItems": frames.MAX_STORES}
    event = fields["CloudEvent"]
    event["id"]["pattern"] = f"^{ID_PATTERN}:[1-9][0-9]*$"
    event["source"]["pattern"] = f"^/stores/{ID_PATTERN}$"
    event["time"] |= _TIME
    event["sequence"] |= _NUMBER
    event["feedsequence"] |= _NUMBER
    for name in ("HoursEnded", "HoursBegan"):
        fields[name]["tick"] |= _TIME


def _event(event: Schema, title: str, type_: Schema, data: Schema) -> Schema:
    """The schema of a CloudEvent of such a type."""
    properties = {**event["properties"], "type": type_, "data": data}
    return {**event, "title": title, "properties": properties}
