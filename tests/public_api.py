"""The public names, from the code: `PYTHONPATH=app python tests/public_api.py` writes
data/public_api.txt, one a line, and deploy/REFERENCE.md, with what each says of itself."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typing_extensions import is_protocol

MODULES = ("solocron", "solocron.client", "solocron.stores", "solocron.testing")
SNAPSHOT = Path(__file__).parent / "data" / "public_api.txt"
REFERENCE = Path(__file__).parents[1] / "deploy" / "REFERENCE.md"

_TITLE = """# Reference

The public names, with what the code says of each (made by `python tests/public_api.py`). Guides are
in the [README](../README.md).
"""


class Name(NamedTuple):
    """A line about a name, how deep it is in others, and what it says of itself."""

    line: str
    depth: int = 0
    doc: str = ""


def public_api() -> str:
    """Each name in `__all__` of each public module, with its signature, bases and members."""
    return "".join(f"{'  ' * each.depth}{each.line}\n" for each in _names())


def reference() -> str:
    """The same with the docstrings, in Markdown."""
    parts = [_TITLE]
    for each in _names():
        doc = re.sub(r"^```$", "```python", each.doc, count=1, flags=re.MULTILINE)
        if each.depth:
            told = f": {doc}".replace("\n", "\n  ") if doc else ""
            parts.append(f"{'  ' * (each.depth - 1)}- `{each.line}`{told}\n")
        else:
            parts.append(f"\n## {each.line.removesuffix('()')}\n\n" + (f"{doc}\n\n" if doc else ""))
    return re.sub(r" +$", "", "".join(parts), flags=re.MULTILINE)


def _names() -> Iterator[Name]:
    for module in filter(find_spec, MODULES):
        names = getattr(importlib.import_module(module), "__all__", [])
        for name in sorted(names):
            value = getattr(importlib.import_module(module), name)
            yield from _described(f"{module}.{name}", value)


def _described(name: str, value: object) -> Iterator[Name]:
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isroutine(value):
        yield Name(f"{_kind(value)}{name}{_signature(value)}", doc=_doc(value))
    else:
        yield Name(f"{name}: {type(value).__name__}")


def _class(name: str, value: type) -> Iterator[Name]:
    bases = ", ".join(each.__name__ for each in value.__bases__ if each is not object)
    yield Name(f"class {name}({bases})", doc=_doc(value))
    if issubclass(value, BaseModel):
        for field, info in value.model_fields.items():
            default = "" if info.default is PydanticUndefined else f" = {info.default!r}"
            annotation = _own(value).__annotations__.get(field)
            yield Name(f"{field}: {annotation}{default}", 1, info.description or "")
    elif any("__init__" in vars(each) for each in value.__mro__ if _is_ours(each)) and not (
        is_protocol(value) or issubclass(value, BaseException)
    ):
        yield Name(f"{value.__name__}{_signature(value.__init__, bound=True)}", 1)
    for member in sorted(dir(value)):
        found = inspect.getattr_static(value, member)
        ours = any(member in vars(each) for each in value.__mro__ if _is_ours(each))
        if ours and (not member.startswith("_") or member in _PROTOCOLS):
            yield from _member(member, found)


def _doc(value: object) -> str:
    """Its docstring, unless it was made for a dataclass."""
    doc = inspect.getdoc(value) or ""
    made = inspect.isclass(value) and doc.startswith(f"{value.__name__}(")
    return "" if made else doc


# What `async with` and `async for` need is as public as a name without underscores.
_PROTOCOLS = ("__aenter__", "__aexit__", "__aiter__", "__anext__", "__contains__", "__len__")


def _member(name: str, found: object) -> Iterator[Name]:
    if isinstance(found, property | cached_property):
        getter = found.fget if isinstance(found, property) else found.func
        assert getter is not None
        told = inspect.signature(getter).return_annotation
        yield Name(f"{name} -> {told}", 1, _doc(getter))
    elif isinstance(found, staticmethod | classmethod):
        sort, function = type(found).__name__, found.__func__
        signature = _signature(function, bound=sort == "classmethod")
        yield Name(f"{sort} {_kind(function)}{name}{signature}", 1, _doc(function))
    elif inspect.isfunction(found):
        doc = "" if name.startswith("_") else _doc(found)
        yield Name(f"{_kind(found)}{name}{_signature(found, bound=True)}", 1, doc)
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


def _options(function: Any) -> Iterator[Name]:
    """What `**options: Unpack[...]` takes."""
    for each in inspect.signature(function).parameters.values():
        if found := re.fullmatch(r"Unpack\[(\w+)\]", str(each.annotation)):
            for name, told in function.__globals__[found[1]].__annotations__.items():
                yield Name(f"{name}: {getattr(told, '__forward_arg__', told)}", 2)


def _kind(function: object) -> str:
    return "async " if inspect.iscoroutinefunction(function) else ""


def _is_ours(value: type) -> bool:
    return value.__module__.partition(".")[0] == "solocron"


def _own(value: type) -> type:
    return next(each for each in value.__mro__ if _is_ours(each))


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
    REFERENCE.write_text(reference())
