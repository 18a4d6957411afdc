"""Made-up requests at a real server: what the OpenAPI document says is what it does."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter
from itertools import product
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from test_socket import nobody_left
from test_web import STORE, serving, token

from solocron.service import Solocron
from solocron.settings import load
from solocron.stores.model import FIELDS, is_store_id
from solocron.web.openapi import document

_EXAMPLES = 30
_STREAM = "GET /events"  # has no end: it is asked for below
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
        if found.ok().label == _STREAM:
            continue
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
    assert len(asked) + 1 == sum(len(methods_of(each)) for each in described["paths"].values())
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


def methods_of(path: dict[str, Any]) -> set[str]:
    return {each.upper() for each in path} & {"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"}


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


# -- the stream ------------------------------------------------------------------------------

_GOOD = st.sampled_from(["1", "2", "1:0", "2:1", "1:99", "*", "*:0", "9", "9:9"])
_ANY = st.one_of(
    _GOOD,
    st.from_regex(r"[1-9*.]{0,2}:?[0-9-]{0,20}", fullmatch=True),
    st.text(st.characters(codec="utf-8"), max_size=70),
)
_STARTS = st.one_of(
    st.lists(_GOOD, min_size=1, max_size=3, unique_by=lambda each: each[0]),
    st.lists(_ANY, max_size=4),
).map(",".join)
_IDS = st.one_of(
    st.just(""), st.sampled_from(["1:0", "1:1,2:0", "2:3,9:1,*:0"]),
    st.lists(_ANY, max_size=4).map(",".join),
)  # fmt: skip
_HEADER_TEXT = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")


def stream_of(port: int, query: str, last_id: str) -> tuple[int, str]:
    """Status, and the first bytes of the stream or the problem's detail."""
    request = f"GET /events?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
    if last_id:
        request += f"Last-Event-ID: {last_id}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall((request + "\r\n").encode())
        data = b""
        while b"subscribed" not in data and b'"detail"' not in data:
            more = connection.recv(65536)
            assert more, data
            data += more
    return int(data.split()[1]), data.decode()


def parsed_as(text: str, *, with_seqs: bool = False) -> Counter[str] | None:
    """The stores of a position, as often as they are named; None if it is none."""
    items = [re.fullmatch(r"([^:]*)(?::([0-9]{1,19}))?", each) for each in text.split(",")]
    for each in items:
        if each is None or int(each[2] or 0) >= 2**63 or (with_seqs and each[2] is None):
            return None
        if each[1] != "*" and not is_store_id(each[1]):
            return None
    return Counter(each[1] for each in items if each is not None)


async def test_made_up_streams_begin_or_are_problems_that_name_what_is_wrong(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=250, derandomize=True, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(_STARTS, _IDS, st.booleans())
    def ask(stores: str, last_id: str, by_header: bool) -> None:
        query = f"stores={quote(stores, safe='*:,')}"
        header = last_id if by_header and _HEADER_TEXT.fullmatch(last_id) else ""
        if not header and last_id:
            query += f"&lastEventId={quote(last_id)}"
        last_id = header.strip(" \t") or ("" if header else last_id)
        status, text = stream_of(api.port, query, header)
        statuses[status] += 1
        wanted = parsed_as(stores)
        seen = parsed_as(last_id, with_seqs=True) if last_id else Counter({"1": 1})
        if wanted is None or max(wanted.values()) > 1:
            assert status == 422 and "stores " in text
        elif seen is None or max(seen.values()) > 1:
            assert status == 422 and "Last-Event-ID has" in text
        else:
            assert status == (200 if wanted.keys() <= {"1", "2", "*"} else 404)

    async with serving() as api:
        for store_id in ("1", "2"):
            path = f"/api/v1/stores/{store_id}"
            assert (await api.call("PUT", path, STORE, auth=token()))[0] == 201
        await asyncio.to_thread(ask)
        await nobody_left(api)
    assert statuses[200] > 20 and statuses[404] > 5 and statuses[422] > 100
    assert set(statuses) == {200, 404, 422}
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
