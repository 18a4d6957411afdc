"""Three servers, 2,000 clients and 100,000 notifications while servers are killed, frozen and
replaced, Redis is restarted and emptied, and links are cut: each client has each notification of
its stores once and in order. And the checker finds it when the servers are broken."""

from __future__ import annotations

import pytest

from acceptance.delivery.__main__ import options_of, parse
from acceptance.delivery.mutations import NO_DEDUPE
from acceptance.delivery.trial import Options, Progress, run


def options(*arguments: str) -> Options:
    return options_of(parse(["--seed", "1", *arguments]))


@pytest.mark.timeout(900)
async def test_2000_clients_have_each_of_100000_notifications_once_and_in_order() -> None:
    report = await run(options(), Progress())
    print(report)
    assert report.is_green, str(report)


@pytest.mark.timeout(240)
async def test_servers_that_send_what_a_client_has_are_found() -> None:
    small = ("--clients", "60", "--notifications", "3000")
    report = await run(options(*small, "--mutation", NO_DEDUPE), Progress())
    assert any(each.startswith("repeated notifications") for each in report.problems), str(report)
