"""The protocol's model: no violation within small bounds, and every guard is needed."""

from __future__ import annotations

import pytest

from model.run import INSTALL, QUICK, Configuration, check, missing_tool, row

pytestmark = pytest.mark.skipif(
    missing_tool() is not None, reason=f"{missing_tool()} is not installed: {INSTALL}"
)


@pytest.mark.parametrize(
    "configuration", QUICK, ids=lambda each: f"{each.kind}-{each.macros.replace(' ', '-')}"
)
def test_the_model_comes_to_what_it_must(configuration: Configuration) -> None:
    result = check(configuration)
    assert result.ok, row(result)
