"""The AsyncAPI document as a judge of frames: which of its messages one is, by direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7


class Contract:
    """`received` and `sent` are the names of the messages, as the server sees them."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.received = {*self._names("receive")}
        self.sent = {*self._names("send")}
        registry = Registry().with_resource("urn:document", DRAFT7.create_resource(document))
        self._validators = {
            name: Draft7Validator(
                {"$ref": f"urn:document#/components/messages/{name}/payload"}, registry=registry
            )
            for name in document["components"]["messages"]
        }

    def _names(self, action: str) -> Iterator[str]:
        for operation in self._document["operations"].values():
            messages = operation["messages"] if operation["action"] == action else []
            if action == "send":
                messages = messages + operation.get("reply", {"messages": []})["messages"]
            for each in messages:
                yield each["$ref"].rpartition("/")[2]

    def from_client(self, frame: Any) -> list[str]:
        """The messages a client's frame is: one, if it is as it should be."""
        return [each for each in sorted(self.received) if self._validators[each].is_valid(frame)]

    def from_server(self, frame: Any) -> list[str]:
        """The messages a server's frame is."""
        return [each for each in sorted(self.sent) if self._validators[each].is_valid(frame)]
