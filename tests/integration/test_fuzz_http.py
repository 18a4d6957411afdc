"""Made-up requests at a real server: what the OpenAPI document says is what it does."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from itertools import product
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from test_web import STORE, serving, token

from solocron.service import Solocron
from solocron.settings import load
from solocron.stores.model import FIELDS
from solocron.web.openapi import document

_EXAMPLES = 30
_CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance",
    "ignored_auth", "unsupported_method",
)  # fmt: skip


def explore(described: dict[str, Any], port: int) -> Counter[str]:
    """Ask for everything described, rightly and wrongly; how often each operation was asked for."""
    load_all_checks()
    checks = CHECKS.get_by_names(_CHECKS)
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=f"http://127.0.0.1:{port}")
    asked: Counter[str] = Counter()

    def ask(case: Case[Any]) -> None:
        asked[case.operation.label] += 1
        case.call_and_validate(
            headers={"Authorization": f"Bearer {token()}"}, checks=checks, timeout=10
        )

    for found, mode in product(schema.get_all_operations(), GenerationMode):
        try:
            cases = found.ok().as_strategy(generation_mode=mode)
            settings(
                max_examples=_EXAMPLES, derandomize=True, deadline=None, database=None,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )(given(case=cases)(ask))()  # fmt: skip
        except Unsatisfiable:  # an operation that takes nothing cannot be asked for wrongly
            assert mode is GenerationMode.NEGATIVE and not found.ok().body
    return asked


# The server, in another thread, may use the random module meanwhile.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_made_up_requests_are_answered_as_described(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        await api.call("PUT", "/api/v1/stores/1", STORE, auth=token())
        status, described = await api.call("GET", "/api/openapi.json", auth=token())
        assert status == 200
        asked = await asyncio.to_thread(explore, described, api.port)
        assert (await api.call("GET", "/api/v1/stores/1", auth=token()))[0] == 200
    assert len(asked) == sum(len(methods_of(each)) for each in described["paths"].values())
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


def methods_of(path: dict[str, Any]) -> set[str]:
    return {each.upper() for each in path} & {"GET", "PUT", "POST", "DELETE", "PATCH"}


async def test_the_document_describes_every_route_and_no_other(
    environment: pytest.MonkeyPatch,
) -> None:
    paths: dict[str, Any] = document()["paths"]
    described = {(method, path) for path, item in paths.items() for method in methods_of(item)}
    assert {(each.method, each.path) for each in Solocron(load()).routes()} == described


async def test_the_document_has_the_limits_that_are_kept(environment: pytest.MonkeyPatch) -> None:
    """A value at its limit is taken, one past it is refused."""
    fields = document()["components"]["schemas"]["StoreInput"]["properties"]
    assert set(fields) == {*FIELDS} - {"is_open"}
    async with serving() as api:

        async def put(store_id: str, **changes: str) -> int:
            path = f"/api/v1/stores/{store_id}"
            return (await api.call("PUT", path, {**STORE, **changes}, auth=token()))[0]

        longest = fields["name"]["maxLength"]
        assert [await put("n", name="x" * size) for size in (longest, longest + 1)] == [201, 422]
        rule = 'Mo 10:00-12:00 "{}"'
        room = fields["hours"]["maxLength"] - len(rule.format(""))
        texts = [rule.format("x" * size) for size in (room, room + 1)]
        assert [await put("h", hours=each) for each in texts] == [201, 422]
        for store_id in ("x" * 64, "x" * 65, "...", "a~b", "a%20b"):
            fits = re.search(fields["id"]["pattern"], store_id.replace("%20", " ")) is not None
            assert await put(store_id) == (201 if fits else 422), store_id
        most = document()["paths"]["/api/v1/stores"]["get"]["parameters"][0]["schema"]["maximum"]
        for limit, status in ((most, 200), (most + 1, 422)):
            path = f"/api/v1/stores?limit={limit}"
            assert (await api.call("GET", path, auth=token()))[0] == status


async def test_the_document_is_for_any_good_token_and_nobody_else(
    environment: pytest.MonkeyPatch,
) -> None:
    async with serving() as api:
        for auth, status in ((None, 401), (token(exp=1), 401), (token(stores=[], scope=""), 200)):
            assert (await api.call("GET", "/api/openapi.json", auth=auth))[0] == status
