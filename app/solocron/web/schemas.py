"""The pieces that the OpenAPI document is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solocron.web.api import MAX_BODY

Schema = dict[str, Any]

_PROBLEMS = {
    400: "The request is not HTTP as it should be.",
    401: "There is no token, or it is refused.",
    403: "The token does not allow this, or a page of this origin may not ask.",
    404: "There is nothing of that name.",
    405: "Stores are not described here: `detail` says where.",
    408: "The body did not come in time.",
    409: "As things are now it cannot be done: `detail` says why.",
    413: f"The body is over {MAX_BODY} bytes.",
    422: "A value is wrong: `detail` names it and the remedy.",
    429: "There are too many connections, of the token, the address or in all.",
    503: "The database or Redis does not answer, or the server is going away; try again later.",
}
GUARDED = (400, 401, 403)


def record(fields: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": [each for each in fields if each not in optional],
        "additionalProperties": False,
    }


def ref(name: str) -> Schema:
    """A schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def answers(good: Mapping[int, tuple[str, Schema | None]], *problems: int) -> dict[str, Any]:
    """Responses by status: the good ones with a description and a JSON schema, then problems."""
    found: dict[str, Any] = {}
    for status, (text, schema) in good.items():
        content = {} if schema is None else {"application/json": {"schema": schema}}
        found[str(status)] = {"description": text, **({"content": content} if content else {})}
    for status in problems:
        found[str(status)] = {
            "description": _PROBLEMS[status],
            "content": {"application/problem+json": {"schema": ref("Problem")}},
        }
    return found


def query(name: str, schema: Schema, text: str) -> dict[str, Any]:
    """A parameter of the query."""
    return {"name": name, "in": "query", "schema": schema, "description": text}
