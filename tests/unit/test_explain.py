"""Why a tick was run or was not: the explanation, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from solocron.cron.board import Presence
from solocron.cron.explain import explain
from solocron.cron.facts import Facts, asked_tick
from solocron.cron.job import Job
from solocron.cron.journal import Entry
from solocron.cron.outcome import VERDICTS
from solocron.cron.run import Run
from solocron.cron.silence import state_of
from solocron.cron.ticks import Calendar
from solocron.errors import InvalidInput
from solocron.locks.results import Pause, Survey

HOUR_MS = 3_600_000
TICK = 1_800_000_000_000
MINUTE_MS = 60_000


async def _body(run: Run) -> None: ...


def job(expression: str = "0 * * * *", zone: str = "UTC") -> Job:
    return Job(name="nightly", calendar=Calendar(expression, zone), body=_body)


def worker(name: str = "w1:1:a", **changes: Any) -> Presence:
    values: dict[str, Any] = {
        "worker": name, "host": "w1", "pid": 1, "version": "1", "started_ms": TICK - HOUR_MS,
        "seen_ms": TICK + 10 * MINUTE_MS, "schedules": {"nightly": "0 * * * * UTC"},
    }  # fmt: skip
    return Presence(**{**values, **changes})


def survey(owner: str = "", **changes: Any) -> Survey:
    values: dict[str, Any] = {
        "owner": owner, "ttl_ms": 90_000, "alive": bool(owner), "settled": None,
        "pause": None,
    }  # fmt: skip
    return Survey(**{**values, **changes})


def row(state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    values = {
        "state": state, "attempt": 1, "owner": "w1:1", "origin": "schedule", "fallback": False,
        "started_at": TICK, "finished_at": None, "duration_ms": 1500, "result": None,
        "params": None, "progress": None, "asked_by": None, "error": None,
        "lease_until": TICK + 11 * MINUTE_MS,
    }  # fmt: skip
    return {**values, **changes}


def said(verdict: str, detail: str = "") -> dict[str, Entry]:
    return {"w1:1:a": Entry("nightly", TICK, verdict, detail)}


def explained(**changes: Any) -> dict[str, Any]:
    """As of ten minutes after the tick, with one server up, unless told otherwise."""
    facts: dict[str, Any] = {
        "job": job(), "tick": TICK, "now_ms": TICK + 10 * MINUTE_MS, "silent_ms": 17_000,
        "kept_ms": 7 * 24 * HOUR_MS, "survey": survey(), "verdicts": {}, "workers": [worker()],
    }  # fmt: skip
    return explain(Facts(**{**facts, **changes}))


LATER = TICK + 2 * HOUR_MS
DEAD = worker(seen_ms=TICK - 30_000)
FIRST = {"ran_before": False, "workers": [worker(started_ms=TICK + 1)]}  # a first deployment


@pytest.mark.parametrize(
    ("facts", "state", "text", "remedy"),
    [
        ({"run": row()}, "succeeded", "run by w1:1 (attempt 1) and succeeded in 1.5 s", ""),
        ({"run": row(fallback=True)}, "succeeded", "without Redis", ""),
        ({"run": row(origin="manual")}, "succeeded", "by hand", ""),
        ({"run": row("failed", error="X: no")}, "failed", "failed: X: no", "solocron run nightly"),
        ({"run": row("running")}, "running", "by w1:1 (attempt 1), for 10 min 0 s", ""),
        ({"run": row("running", lease_until=TICK)}, "silent", "its lease has ended", "takes the"),
        ({"run": row("running"), "workers": [DEAD]}, "silent", "lease ends in 1 min", "takes the"),
        ({"database": "gone", "verdicts": said("ran")}, "succeeded", "w1:1:a ran it", ""),
        ({"database": "gone", "verdicts": said("failed", "X")}, "failed", "in vain", "run nightly"),
        ({"database": "gone"}, "unknown", "ledger cannot be asked", "mend the database"),
        ({"tick": LATER}, "not-due", "1 h 50 min to go", ""),
        ({"tick": TICK + 1}, "no-tick", "has no tick then", "solocron jobs"),
        ({"survey": survey(pause=Pause("me", 1, 9))}, "skipped", "is paused", "resume nightly"),
        ({"verdicts": said("paused")}, "skipped", "was paused", "resume nightly"),
        ({"verdicts": said("redis-down")}, "skipped", "Redis was away", "ON_REDIS_DOWN=run"),
        ({"verdicts": said("database-down")}, "skipped", "database was away", "CATCH_UP"),
        ({"verdicts": said("clock-skew")}, "skipped", "had not come", "NTP"),
        ({"verdicts": said("overlap")}, "skipped", "still being run", "faster"),
        ({"verdicts": said("overlap"), "survey": survey(settled=TICK - HOUR_MS)}, "waiting",
         "not been run yet: a server left it: the tick before was still", "SOLOCRON_SWEEP"),
        ({"verdicts": said("overlap"), "run_after": TICK + HOUR_MS, "now_ms": LATER}, "skipped",
         "still being run; the next that was run is 2027-01-15T09:00:00+00:00", "faster"),
        ({"verdicts": said("database-down"), "run_after": TICK + HOUR_MS, "now_ms": LATER},
         "skipped", "database was away; the next that was run is 2027-01-15T09", "run nightly"),
        ({"ran_earlier": False, "run_after": TICK + HOUR_MS, "now_ms": LATER}, "not-run",
         "job had not been run before, and a new job begins with its first tick", "run nightly"),
        ({"verdicts": said("missed")}, "skipped", "catch-up window", "run nightly"),
        ({"tick": LATER + 1}, "no-tick", "before is 2027-01-15T10:00:00+00:00", "solocron jobs"),
        ({"survey": survey(settled=LATER), "run_after": TICK + HOUR_MS}, "skipped",
         "out: 2027-01-15T09:00:00+00:00 was run in its place", "run nightly"),
        ({"run": row("failed", error="X: no"), "has_code": False}, "failed", "X: no",
         "now (where SOLOCRON_APP names its code, not here): solocron run nightly"),
        ({"survey": survey(settled=LATER)}, "skipped", "ledger knows no run", "run nightly"),
        ({"survey": survey(pause=Pause("me", TICK + 1, 9))}, "waiting",
         "had not been run when the job was paused", "resume nightly"),
        ({**FIRST}, "not-run", "no server was up at that time, and the servers that are up began "
         "after it, from 2027-01-15T08:00:00+00:00", "run nightly"),
        ({**FIRST, "survey": survey(pause=Pause("me", TICK + 1, 9))}, "not-run",
         "no server was up at that time", "run nightly"),
        ({**FIRST, "ran_before": True}, "waiting", "not been run yet", "SOLOCRON_SWEEP"),
        ({"ran_before": False}, "waiting", "not been run yet", "SOLOCRON_SWEEP"),  # up before it
        ({"survey": survey("locked")}, "waiting", "held by locked for 1 min", "unlock cron:night"),
        ({}, "waiting", "not been run yet", "SOLOCRON_SWEEP"),
        ({"workers": [DEAD]}, "not-run", "no server is up", "solocron serve"),
        ({"workers": [], "redis": "gone", "survey": None}, "waiting", "not been run yet", "SWEEP"),
        ({"now_ms": LATER, "workers": [worker(seen_ms=LATER)]}, "not-run", "older than", "longer"),
        ({"now_ms": LATER, "workers": [worker(seen_ms=LATER)], "verdicts": said("held")},
         "skipped", "came to nothing", "run nightly"),
        ({"now_ms": TICK + 9 * 24 * HOUR_MS}, "unknown", "SOLOCRON_HISTORY", ""),
    ],
)  # fmt: skip
def test_how_it_went_in_all(facts: dict[str, Any], state: str, text: str, remedy: str) -> None:
    told = explained(**facts)
    assert told["state"] == state and text in told["text"], told
    assert remedy in told["remedy"] if remedy else told["remedy"] == ""
    assert "{" not in told["remedy"]


@pytest.mark.parametrize(
    ("presence", "text", "remedy"),
    [
        (worker(started_ms=TICK + 1), "was not there yet", ""),
        (DEAD, "was dead by then: last seen 2027-01-15T07:59:30+00:00, 30.0 s before", "its log"),
        (worker(seen_ms=TICK + 1), "died with it, or after it", "kubectl get pods"),
        (worker(schedules={}), "has no job of that name", "same release"),
        (worker(schedules={"nightly": "1 * * * * UTC"}), "by another schedule, '1 *", "TIMEZONE"),
        (worker(), "has told nothing, though it was up", "event loop"),
    ],
)
def test_why_a_server_said_nothing(presence: Presence, text: str, remedy: str) -> None:
    (told,) = explained(workers=[presence])["workers"]
    assert text in told["text"] and told["verdict"] is None
    assert remedy in told["remedy"] if remedy else told["remedy"] == ""


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (
            {"run": row(origin="manual", owner="c:9")},
            "nothing to do with it: it was a run by hand, of",
        ),
        (
            {"run": row(origin="backfill", owner="c:9")},
            "nothing to do with it: it was a backfill, of",
        ),
        ({"tick": TICK + 1}, "had nothing to do: there is no tick then"),
        ({"tick": TICK + 1, "workers": [DEAD]}, "had nothing to do: there is no tick then"),
        ({"tick": TICK + 9999 * HOUR_MS}, "waits for it"),
    ],
)
def test_a_server_that_had_nothing_to_tell_is_blamed_for_nothing(
    facts: dict[str, Any], text: str
) -> None:
    (told,) = explained(**facts)["workers"]
    assert text in told["text"] and told["remedy"] == ""


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_server_that_was_replaced_needs_no_look(is_replaced: bool) -> None:
    later = worker("w2:1:a", started_ms=TICK - 20_000)
    (told, *_) = explained(workers=[DEAD, later] if is_replaced else [DEAD])["workers"]
    assert told["text"].endswith("; another was started in its place") is is_replaced
    assert ("see whether it is gone" in told["remedy"]) is not is_replaced


def test_of_a_tick_to_come_no_server_was_dead_by_then() -> None:
    (told,) = explained(tick=TICK + 9999 * HOUR_MS, workers=[DEAD])["workers"]
    assert told["text"] == "is silent: last seen 2027-01-15T07:59:30+00:00"


@pytest.mark.parametrize(
    ("verdict", "facts", "is_told"),
    [
        ("database-down", {}, True),
        ("database-down", {"run": row()}, False),
        ("database-down", {"run_after": TICK + HOUR_MS}, False),
        ("database-down", {"now_ms": LATER}, False),
        ("paused", {"now_ms": LATER}, False),
        ("overlap", {"now_ms": LATER}, True),
        ("overlap", {"run": row()}, False),
        ("fallback", {"run": row()}, False),
        ("fallback", {"run": row(), "redis": "gone"}, True),
        ("late", {"run": row()}, True),
    ],
)
def test_what_is_over_and_hurt_nobody_has_no_remedy(
    verdict: str, facts: dict[str, Any], is_told: bool
) -> None:
    (told,) = explained(verdicts=said(verdict), **facts)["workers"]
    assert (told["remedy"] != "") is is_told


def test_who_began_a_tick_was_not_dead_by_then() -> None:
    (told,) = explained(workers=[DEAD], run=row("running", owner="w1:1"))["workers"]
    assert told["text"].startswith("died with it, or after it: last seen ")


@pytest.mark.parametrize(("left_ms", "state"), [(0, "silent"), (1, "running")])
def test_a_run_whose_lease_has_ended_is_silent(left_ms: int, state: str) -> None:
    assert state_of(row("running", lease_until=TICK + left_ms), TICK) == state
    assert state_of(row("failed", lease_until=0), TICK) == "failed"


def test_silence_about_what_was_just_now_or_long_ago() -> None:
    (told,) = explained(now_ms=TICK + 100, workers=[worker(seen_ms=TICK)])["workers"]
    assert told["text"] == "has not told yet" and told["remedy"] == "ask again in 16.9 s"
    now = TICK + 25 * HOUR_MS
    (told,) = explained(now_ms=now, workers=[worker(seen_ms=now)])["workers"]
    assert "too long ago" in told["text"]
    (told,) = explained(now_ms=TICK - 1, workers=[worker(seen_ms=TICK - 1)])["workers"]
    assert told["text"] == "waits for it"


@pytest.mark.parametrize(
    ("owner", "alive", "silent"),
    [("w1:1:ab:-1", True, False), ("w1:1:ab:-1", False, True), ("locked", False, False)],
)
def test_the_lock_now(owner: str, alive: bool, silent: bool) -> None:
    told = explained(survey=survey(owner, alive=alive))
    assert told["lock"] == {"owner": owner, "ttl_ms": 90_000, "silent": silent}
    assert told["state"] == "waiting" and ("its lock is held" in told["text"]) is not silent


@pytest.mark.parametrize(
    ("facts", "since", "is_told"),
    [
        ({}, TICK + MINUTE_MS, True),  # it keeps the tick from being run late
        ({"run": row()}, TICK + MINUTE_MS, False),
        ({"run": row()}, TICK - MINUTE_MS, True),
        ({"run": row()}, 0, False),  # nobody knows since when
        ({"now_ms": LATER}, TICK + MINUTE_MS, False),  # too old to be run, whatever is paused
        ({"now_ms": LATER}, TICK - MINUTE_MS, True),
        ({"now_ms": TICK - MINUTE_MS}, TICK - 2 * MINUTE_MS, True),
        ({"now_ms": TICK - HOUR_MS}, TICK - 2 * HOUR_MS, False),  # over before it comes
    ],
)
def test_a_pause_is_told_where_it_is_about_the_tick(
    facts: dict[str, Any], since: int, is_told: bool
) -> None:
    told = explained(survey=survey(pause=Pause("me", since, 30 * MINUTE_MS)), **facts)
    assert (told["pause"] is not None) is is_told
    assert told["pause"] is None or told["pause"]["by"] == "me"


def test_times_in_words_are_whole_seconds() -> None:
    dead = worker(seen_ms=TICK - 30_123)
    told = explained(tick=TICK + 1, workers=[dead])
    assert told["local_time"] == "2027-01-15T08:00:00+00:00"
    assert (
        "last seen 2027-01-15T07:59:29+00:00, " in explained(workers=[dead])["workers"][0]["text"]
    )


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_is_put_into_words(verdict: str) -> None:
    (told,) = explained(verdicts=said(verdict, "the detail"))["workers"]
    assert told["verdict"] == verdict and told["text"].endswith(": the detail")
    assert "{" not in told["remedy"]
    (gone,) = explained(verdicts=said(verdict), workers=[])["workers"]
    assert "stopped since" in gone["text"] and not gone["alive"]


def test_schedules_that_differ_are_named_once_each() -> None:
    other = {"nightly": "1 * * * * UTC"}
    told = explained(workers=[worker(), *(worker(f"w{n}", schedules=other) for n in (2, 3))])
    assert [each["about"] for each in told["notes"]] == ["schedules"]
    assert told["notes"][0]["text"].startswith("w2, w3 run it by '1 * * * * UTC', not '0 *")


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("2026-04-24T00:00", "2026-04-24T01:00:00+03:00"),  # does not exist
        ("2026-04-24T00:30", "2026-04-24T01:00:00+03:00"),
        ("2026-04-25T00:00", "2026-04-25T00:00:00+03:00"),
        ("2026-04-25T00:00Z", "2026-04-25T03:00:00+03:00"),
        ("2026-10-29T23:30", "2026-10-29T23:30:00+03:00"),  # the first of two
        ("1800000000000", "2027-01-15T10:00:00+02:00"),
    ],
)
def test_the_time_asked_for_is_local(text: str, local: str) -> None:
    cairo = job("0 0 * * *", "Africa/Cairo")
    tick, note = asked_tick(cairo, text, TICK)
    assert cairo.calendar.local(tick).isoformat() == local
    assert ("does not exist" in note) is local.endswith("T01:00:00+03:00")


def test_the_newest_tick_is_asked_for_unless_told() -> None:
    assert asked_tick(job(), None, TICK + 5) == asked_tick(job(), "latest", TICK + 5) == (TICK, "")


@pytest.mark.parametrize(
    "text", ["", "noon", "-1", "0", "4102444800000", "9" * 41, "²", "0001-01-01", "9999-12-31",
             "1e3", "2026-13-01"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="before the year 2100"):
        asked_tick(job("0 0 * * *", "Africa/Cairo"), text, TICK)


@pytest.mark.parametrize(
    ("expression", "zone", "start", "has_tick"),
    [
        ("0 0 * * *", "Africa/Cairo", "2026-04-24T00:00:00", True),
        ("0 0,6 * * *", "Africa/Cairo", "2026-04-24T00:00:00", True),
        ("0 6 * * *", "Africa/Cairo", "2026-04-24T00:00:00", False),
        ("*/30 * * * *", "Africa/Cairo", "2026-04-24T00:00:00", False),  # goes on through it
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T02:00:00", True),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04T02:00:00", True),  # of half an hour
        ("45 2 * * *", "Australia/Lord_Howe", "2026-10-04T02:00:00", False),
    ],
)
def test_the_local_times_that_do_not_exist(
    expression: str, zone: str, start: str, has_tick: bool
) -> None:
    calendar = Calendar(expression, zone)
    since = 1_767_225_600_000  # 2026-01-01
    (gap,) = calendar.gaps(since, since + 365 * 24 * HOUR_MS)
    assert gap.start.isoformat() == start and (gap.tick is not None) is has_tick
    if has_tick:
        assert calendar.next_after(gap.at_ms - 1) == gap.tick
    assert Calendar(expression).gaps(since, since + 365 * 24 * HOUR_MS) == []


def test_a_tick_whose_time_does_not_exist_says_so() -> None:
    cairo = job("0 0 * * *", "Africa/Cairo")
    tick, _ = asked_tick(cairo, "2026-04-24T01:00", TICK)
    told = explained(job=cairo, tick=tick, run=row(), workers=[])
    assert told["is_tick"] and "from 00:00 to 01:00" in told["notes"][0]["text"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"origin": "manual", "asked_by": "ann@host"}, ", by hand of ann@host)"),
        ({"origin": "backfill", "asked_by": "ann@host"}, ", by a backfill of ann@host)"),
        ({"progress": '{"done": 40, "total": 100, "note": "b"}'}, "s; 40 of 100 (40 %): b"),
    ],
)
def test_a_running_run_says_who_asked_for_it_and_how_far_it_is(
    more: dict[str, Any], said: str
) -> None:
    told = explained(run=row("running", **more))
    assert said in told["text"] and told["state"] == "running"
