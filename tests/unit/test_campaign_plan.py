"""The campaign's schedule of faults: the same from the same seed, and complete."""

from __future__ import annotations

import pytest

from faults.campaign.plan import KINDS, ON_REQUEST, TOPOLOGIES, plan, shown


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_seed_decides_the_schedule(topology: str) -> None:
    assert shown(plan(7, 120, topology)) == shown(plan(7, 120, topology))
    assert shown(plan(7, 120, topology)) != shown(plan(8, 120, topology))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_kind_comes_and_all_end_in_time(topology: str) -> None:
    faults = plan(7, 180, topology)
    assert {fault.kind for fault in faults} == set(KINDS[topology]) - ON_REQUEST
    assert all(fault.at_s + fault.for_s <= 180 for fault in faults)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


def test_a_longer_campaign_begins_like_a_shorter_one() -> None:
    short = plan(7, 60, "standalone")
    assert plan(7, 120, "standalone")[: len(short)] == short


def test_a_few_kinds_can_be_asked_for() -> None:
    faults = plan(7, 30, "standalone", only=("zombie", "flushall"))
    assert {fault.kind for fault in faults} == {"zombie", "flushall"}
