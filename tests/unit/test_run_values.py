"""What a run may be given and may give back, and what of it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from solocron.cron.values import (
    MAX_PARAMS,
    MAX_RESULT,
    InvalidResult,
    counts_of,
    default_params,
    merged,
    progress_text,
    read_pairs,
    result_text,
    value_of,
)
from solocron.errors import ConfigError, InvalidInput

DEFAULTS = {"day": "today", "limit": 10, "ratio": 0.5, "dry": False, "stores": [1], "more": None}


@dataclass
class Report:
    stores: int
    names: list[str]


class Model(BaseModel):
    stores: int


class Typed(TypedDict):
    stores: int


@pytest.mark.parametrize(
    ("returned", "kept"),
    [
        (None, None),
        ({"stores": 3}, {"stores": 3}),
        (MappingProxyType({"stores": 3}), {"stores": 3}),
        ([1, "two", None], [1, "two", None]),
        (7, 7),
        ("", ""),
        (Report(3, ["a", "ü"]), {"stores": 3, "names": ["a", "ü"]}),
        ({"all": [Report(1, [])]}, {"all": [{"stores": 1, "names": []}]}),
        (Model(stores=3), {"stores": 3}),
        (Typed(stores=3), {"stores": 3}),
    ],
)
def test_what_a_body_returns_is_kept_as_json(returned: Any, kept: Any) -> None:
    assert value_of(result_text(returned)) == kept


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (object(), r"it returned what is no JSON \(a object is none of its values\): return a map"),
        (float("nan"), "no JSON"),
        ({1, 2}, "no JSON"),
        (Report, "no JSON"),
        ("\ud800", "no JSON"),
        ("x" * MAX_RESULT, rf"its result has {MAX_RESULT + 2} bytes as JSON: return at most"),
    ],
)
def test_what_cannot_be_kept_is_refused(returned: Any, complaint: str) -> None:
    with pytest.raises(InvalidResult, match=complaint):
        result_text(returned)


def test_a_result_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidResult):
        result_text(loop)


def test_counts_are_the_whole_numbers_of_a_mapping() -> None:
    assert counts_of({"closed": 3, "name": "x", "part": 0.5}) == {"closed": 3}
    assert counts_of(Report(3, [])) == {"stores": 3}
    assert counts_of([1, 2]) == {} and counts_of(None) == {}


def test_parameters_are_those_given_and_the_other_defaults() -> None:
    given = {"limit": 3, "ratio": 1, "dry": True, "stores": [], "more": {"any": ["thing"]}}
    assert merged("one", DEFAULTS, given) == {**DEFAULTS, **given}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"days": 1}, "job 'one' has no parameter 'days': use of: day, dry, limit, more, ratio"),
        ({"day": 3}, "parameter 'day' of job 'one' is 3: give a text, such as 'today'"),
        ({"limit": True}, "'limit' .* is True: give a whole number, such as 10"),
        ({"limit": 1.5}, "'limit' .* is 1.5: give a whole number"),
        ({"dry": 0}, "'dry' .* is 0: give true or false"),
        ({"ratio": "1"}, "'ratio' .* is '1': give a number"),
        ({"stores": {}}, "'stores' .* give a list"),
        ({"more": object()}, "params of job 'one' are no JSON"),
        ({"more": "\ud800"}, "params of job 'one' are no JSON"),
        ({"more": "x" * MAX_PARAMS}, rf"have \d+ bytes as JSON: give at most {MAX_PARAMS}"),
    ],
)
def test_a_wrong_parameter_is_named_with_the_remedy(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        merged("one", DEFAULTS, given)


def test_a_job_without_parameters_says_so() -> None:
    with pytest.raises(InvalidInput, match="has no parameter 'x': use of: it has none"):
        merged("one", {}, {"x": 1})


def test_typed_parameters_are_json_or_text() -> None:
    pairs = ["day=3", "limit=3", "stores=[1, 2]", "more=a=b", "dry=true"]
    assert read_pairs("one", DEFAULTS, pairs) == {
        "day": "3", "limit": 3, "stores": [1, 2], "more": "a=b", "dry": True
    }  # fmt: skip
    for bad, complaint in (["day"], "give key=value"), (["day=1", "day=2"], "given twice"):
        with pytest.raises(InvalidInput, match=complaint):
            read_pairs("one", DEFAULTS, bad)


@pytest.mark.parametrize("params", [[1], {1: 2}, {"a": object()}, {"a": "x" * MAX_PARAMS}])
def test_defaults_are_json(params: Any) -> None:
    with pytest.raises(ConfigError, match="params of job 'one'"):
        default_params("one", params)


def test_progress_in_words() -> None:
    assert progress_text(None) == ""
    assert progress_text({"done": 40, "total": 100, "note": "b"}) == "40 of 100 (40 %): b"
    assert progress_text({"done": 7, "total": None, "note": ""}) == "7"
    assert progress_text({"done": 1.5, "total": 0, "note": ""}) == "1.5"
