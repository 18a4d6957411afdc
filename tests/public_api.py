"""The public names as text, one a line: `python tests/public_api.py` writes data/public_api.txt."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typing_extensions import is_protocol

MODULES = ("solocron", "solocron.client", "solocron.stores", "solocron.testing")
SNAPSHOT = Path(__file__).parent / "data" / "public_api.txt"


def public_api() -> str:
    """Each name in `__all__` of each public module, with its signature, bases and members."""
    lines = []
    for module in filter(find_spec, MODULES):
        names = getattr(importlib.import_module(module), "__all__", [])
        for name in sorted(names):
            value = getattr(importlib.import_module(module), name)
            lines += _described(f"{module}.{name}", value)
    return "".join(f"{line}\n" for line in lines)


def _described(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isroutine(value):
        yield f"{_kind(value)}{name}{_signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def _class(name: str, value: type) -> Iterator[str]:
    bases = ", ".join(each.__name__ for each in value.__bases__ if each is not object)
    yield f"class {name}({bases})"
    if issubclass(value, BaseModel):
        for field, info in value.model_fields.items():
            default = "" if info.default is PydanticUndefined else f" = {info.default!r}"
            yield f"  {field}: {_own(value).__annotations__.get(field)}{default}"
    elif any("__init__" in vars(each) for each in value.__mro__ if _is_ours(each)) and not (
        is_protocol(value) or issubclass(value, BaseException)
    ):
        yield f"  {value.__name__}{_signature(value.__init__, bound=True)}"
    for member in sorted(dir(value)):
        found = inspect.getattr_static(value, member)
        ours = any(member in vars(each) for each in value.__mro__ if _is_ours(each))
        if ours and (not member.startswith("_") or member in _PROTOCOLS):
            yield from (f"  {line}" for line in _member(member, found))


# What `async with` and `async for` need is as public as a name without underscores.
_PROTOCOLS = ("__aenter__", "__aexit__", "__aiter__", "__anext__", "__contains__", "__len__")


def _member(name: str, found: object) -> Iterator[str]:
    if isinstance(found, property):
        assert found.fget is not None
        yield f"{name} -> {inspect.signature(found.fget).return_annotation}"
    elif isinstance(found, staticmethod | classmethod):
        sort = type(found).__name__
        signature = _signature(found.__func__, bound=sort == "classmethod")
        yield f"{sort} {_kind(found.__func__)}{name}{signature}"
    elif inspect.isfunction(found):
        yield f"{_kind(found)}{name}{_signature(found, bound=True)}"
        yield from _options(found)


class _Text:
    """Is shown as it is, not in quotes."""

    def __init__(self, text: object) -> None:
        self._text = str(text)

    def __repr__(self) -> str:
        return self._text


def _signature(function: Any, *, bound: bool = False) -> inspect.Signature:
    """Its parameters, without `self`, as they are written."""
    signature = inspect.signature(function)
    parameters = []
    for each in list(signature.parameters.values())[bound:]:
        if isinstance(each.annotation, str):
            each = each.replace(annotation=_Text(each.annotation))
        if inspect.isroutine(each.default):
            each = each.replace(default=_Text(each.default.__name__))
        parameters.append(each)
    told = signature.return_annotation
    return signature.replace(
        parameters=parameters, return_annotation=_Text(told) if isinstance(told, str) else told
    )


def _options(function: Any) -> Iterator[str]:
    """What `**options: Unpack[...]` takes."""
    for each in inspect.signature(function).parameters.values():
        if found := re.fullmatch(r"Unpack\[(\w+)\]", str(each.annotation)):
            for name, told in function.__globals__[found[1]].__annotations__.items():
                yield f"  {name}: {getattr(told, '__forward_arg__', told)}"


def _kind(function: object) -> str:
    return "async " if inspect.iscoroutinefunction(function) else ""


def _is_ours(value: type) -> bool:
    return value.__module__.partition(".")[0] == "solocron"


def _own(value: type) -> type:
    return next(each for each in value.__mro__ if _is_ours(each))


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
