"""What a run is given and what it gives back, as JSON. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from solocron.errors import ConfigError, InvalidInput

MAX_PARAMS = 16 * 1024
MAX_RESULT = 64 * 1024
_MAX_NAME = 100
_SHOWN = 20


class InvalidResult(ValueError):
    """A body returned what cannot be kept."""


def default_params(job: str, params: object) -> dict[str, Any]:
    """A job's parameters, unless said otherwise. Raises ConfigError."""
    if not isinstance(params, Mapping) or not all(isinstance(each, str) for each in params):
        raise ConfigError(f"params of job {job!r}: give a mapping of names to JSON values")
    try:
        text = _json(dict(params))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"params of job {job!r} are no JSON ({str(error)[:100]}): give texts, numbers, lists, "
            "mappings, True, False or None"
        ) from None
    _check_size(text, f"params of job {job!r}", ConfigError)
    found: dict[str, Any] = json.loads(text)
    return found


def merged(job: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run by hand: those given, which must be of their defaults' types (of any,
    where the default is None), and the other defaults. Raises InvalidInput."""
    for name, value in given.items():
        if name not in defaults:
            known = ", ".join(sorted(defaults)[:_SHOWN]) or "it has none"
            raise InvalidInput(
                f"job {job!r} has no parameter {str(name)[:_MAX_NAME]!r}: use of: {known}"
            )
        if not _is_like(value, defaults[name]):
            raise InvalidInput(
                f"parameter {name!r} of job {job!r} is {_shown(value)}: give "
                f"{_kind(defaults[name])}, such as {_shown(defaults[name])}"
            )
    params = {**defaults, **given}
    try:
        text = _json(params)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"params of job {job!r} are no JSON: {str(error)[:100]}") from None
    _check_size(text, f"params of job {job!r}", InvalidInput)
    return params


def read_pairs(job: str, defaults: Mapping[str, Any], pairs: Sequence[str]) -> dict[str, Any]:
    """Parameters as typed by hand, each `key=value`: a JSON value, or where the default is a text,
    or it is no JSON, the text itself. Raises InvalidInput."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidInput(f"--param is {pair[:_MAX_NAME]!r}: give key=value")
        if name in found:
            raise InvalidInput(f"--param {name[:_MAX_NAME]!r} is given twice: give it once")
        found[name] = text if isinstance(defaults.get(name), str) else _read(text)
    return found


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def params_text(params: Mapping[str, Any]) -> str:
    """As the ledger keeps them."""
    return _json(dict(params))


def result_text(result: object) -> str | None:
    """What a body returned, as the ledger keeps it: JSON's values, dataclasses and pydantic's
    models; None if it returned nothing. Raises InvalidResult."""
    if result is None:
        return None
    try:
        text = _json(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidResult(
            f"it returned what is no JSON ({str(error)[:200]}): return a mapping, a list, a text, "
            "a number, a dataclass, a pydantic model or None"
        ) from None
    if (size := len(text.encode())) > MAX_RESULT:
        raise InvalidResult(
            f"its result has {size} bytes as JSON: return at most {MAX_RESULT}, such as where the "
            "whole of it is"
        )
    return text


def counts_of(result: object) -> dict[str, int]:
    """What of a result are counts: the whole numbers of a mapping."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    if not isinstance(result, Mapping):
        return {}
    return {str(name): count for name, count in result.items() if isinstance(count, int)}


def value_of(text: str | None) -> Any:
    """A value that the ledger keeps; None if there is none."""
    return None if text is None else json.loads(text)


def progress_text(progress: Mapping[str, Any] | None) -> str:
    """Such as `40 of 100 (40 %): batch 4`; '' if there is none."""
    if progress is None:
        return ""
    done, total, note = progress["done"], progress["total"], progress["note"]
    text = f"{done:g}" if isinstance(done, float) else str(done)
    if total:
        text += f" of {total:g} ({min(100, 100 * done / total):.0f} %)"
    return f"{text}: {note}" if note else text


def _json(value: object) -> str:
    text = json.dumps(
        value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")
    )
    text.encode()  # lone surrogates are no text
    return text


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is none of its values")


def _is_like(value: object, default: object) -> bool:
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _kind(default: object) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text",
             list: "a list", dict: "an object"}  # fmt: skip
    return words[type(default)]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_size(text: str, what: str, error: type[Exception]) -> None:
    if (size := len(text.encode())) > MAX_PARAMS:
        raise error(f"{what} have {size} bytes as JSON: give at most {MAX_PARAMS}")
