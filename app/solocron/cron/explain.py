"""Why a tick was run, or was not: from what is known of it, an explanation in words. Pure.

Times are UTC epoch ms, in words ISO 8601. A word of `State` says how it went; each text that
asks for something has a remedy beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from solocron.cron.board import Presence
from solocron.cron.facts import DAY_MS, Facts
from solocron.cron.job import Job
from solocron.cron.outcome import BEGUN
from solocron.cron.server_parts import PASSING, filled, part_of, said_text
from solocron.cron.sweep import is_free
from solocron.cron.values import counts_of, progress_text, value_of
from solocron.cron.wording import SHOWN_ERROR, WORDS, Words, iso, moment, span
from solocron.locks.results import Survey, token_tick

State = Literal["succeeded", "failed", "running", "silent", "waiting", "skipped", "not-run",
                "not-due", "no-tick", "unknown"]  # fmt: skip

_SWEEP = "nothing yet: a server looks for such ticks every SOLOCRON_SWEEP s"

# Of several servers' reasons, the one that tells most.
_TELLING = ("paused", "redis-down", "database-down", "clock-skew", "overlap", "missed", "held",
            "duplicate-prevented", "done")  # fmt: skip

_ANOTHERS = ("held", "duplicate-prevented", "done")  # in favour of another server


def explain(facts: Facts) -> dict[str, Any]:
    """The explanation, as JSON's values."""
    job, tick, calendar = facts.job, facts.tick, facts.job.calendar
    state, (text, remedy) = _conclusion(facts)
    names = sorted({*facts.verdicts, *(each.worker for each in facts.workers)})
    return {
        "job": job.name, "tick": tick, "local_time": iso(calendar.local(tick)),
        "schedule": calendar.expression, "zone": calendar.zone, "is_tick": facts.is_tick,
        "previous_tick": calendar.latest_at(tick - 1), "next_tick": calendar.next_after(tick),
        "state": state, "text": text, "remedy": filled(remedy, facts),
        "redis": facts.redis or "up",
        "database": facts.database or ("up" if facts.ledger_in == "database" else "none"),
        "notes": [{"about": about, "text": said, "remedy": filled(what, facts)}
                  for about, (said, what) in _notes(facts)],
        "ledger": _ledger(facts.run),
        "lock": _lock(facts.survey), "pause": _pause(facts),
        "workers": [part_of(facts, each) for each in names],
    }  # fmt: skip


# -- the conclusion ----------------------------------------------------------------------------


def _conclusion(facts: Facts) -> tuple[State, Words]:
    """How the tick went in all."""
    if facts.run is not None:
        return _by_ledger(facts, facts.run)
    for worker, entry in facts.verdicts.items():
        if entry.verdict in BEGUN and entry.verdict != "lost":
            state: State = "failed" if entry.verdict == "failed" else "succeeded"
            return state, (f"{worker} {said_text(entry)}", WORDS[entry.verdict][1])
    if not facts.is_tick:
        calendar = facts.job.calendar
        before, after = calendar.latest_at(facts.tick), calendar.next_after(facts.tick)
        return "no-tick", (
            f"the schedule {calendar.expression!r} in {calendar.zone} has no tick then: the one "
            f"before is {moment(before)}, the next one {moment(after)}",
            "ask for one of these; or see that the schedule is the one you mean: solocron jobs",
        )
    if facts.due_ms > facts.now_ms:
        delay = f", {span(facts.job.delay_ms)} of them by its jitter" if facts.job.delay_ms else ""
        return "not-due", (
            f"its time has not come: {span(facts.due_ms - facts.now_ms)} to go{delay}",
            "",
        )
    if facts.database:
        return "unknown", ("no server said that it ran it, and the ledger cannot be asked",
                           "mend the database, then ask again")  # fmt: skip
    return _not_run(facts)


def _by_ledger(facts: Facts, run: Mapping[str, Any]) -> tuple[State, Words]:
    owner, attempt = run["owner"], f"attempt {run['attempt']}"
    without = ", without Redis" if run["fallback"] else ""
    by_hand = _by_hand(run)
    if run["state"] == "succeeded":
        return "succeeded", (
            f"it was run by {owner} ({attempt}{without}{by_hand}) and succeeded in "
            f"{span(run['duration_ms'] or 0)}", "",
        )  # fmt: skip
    if run["state"] != "running":
        error = str(run["error"])[:SHOWN_ERROR]
        return "failed", (f"it was run by {owner} ({attempt}{without}{by_hand}) and failed: "
                          f"{error}", WORDS["failed"][1])  # fmt: skip
    found = facts.owner(owner)
    left_ms = run["lease_until"] - facts.now_ms
    if left_ms <= 0 or (found is not None and facts.is_silent(found)):
        seen = f", last seen {moment(found.seen_ms)}" if found is not None else ""
        when = "has ended" if left_ms <= 0 else f"ends in {span(left_ms)}"
        return "silent", (
            f"it was begun by {owner} ({attempt}) at {moment(run['started_at'])}, which has gone "
            f"silent{seen}; its lease {when}",
            "ask for the backfill again: solocron backfill {job}"
            if run["origin"] == "backfill"
            else "nothing, if another server is up: it takes the tick over within lease and sweep; "
            "see below which are",
        )
    for_ms = facts.now_ms - run["started_at"]
    far = f"; {text}" if (text := progress_text(value_of(run["progress"]))) else ""
    return "running", (f"it is being run by {owner} ({attempt}{without}{by_hand}), for "
                       f"{span(for_ms)}{far}", "")  # fmt: skip


def _by_hand(run: Mapping[str, Any]) -> str:
    """What is said of a run that its schedule did not begin."""
    how = {"manual": ", by hand", "backfill": ", by a backfill"}.get(run["origin"], "")
    return f"{how} of {run['asked_by']}" if how and run["asked_by"] else how


def _not_run(facts: Facts) -> tuple[State, Words]:
    """Why the ledger knows no run of a tick that has come."""
    age_ms = facts.now_ms - facts.due_ms
    said = {entry.verdict for entry in facts.verdicts.values()}
    open_still, survey = facts.is_open, facts.survey
    if age_ms > facts.kept_ms and not said:
        return "unknown", ("the ledger keeps its runs no longer (SOLOCRON_HISTORY)", "")
    if facts.began_after_it and not said:
        return _before_the_first(facts)
    pause = survey.pause if survey is not None and open_still else None
    if pause is not None and pause.at_ms <= facts.due_ms:
        return "skipped", ("it was not run: the job is paused", WORDS["paused"][1])
    reason = next((each for each in _TELLING if each in said), None)
    if reason is not None and reason not in _ANOTHERS:
        return _left_by_a_server(facts, reason)
    if not facts.ran_earlier and facts.run_after is not None:
        return "not-run", (
            "it was not run: the job had not been run before, and a new job begins with its first "
            f"tick after a server's start, here {moment(facts.run_after)}", "{by_hand}",
        )  # fmt: skip
    if (left_out := _left_out(facts)) is not None:
        return "skipped", (left_out, "{by_hand}")
    if pause is not None:
        return "waiting", (
            "it had not been run when the job was paused, and is not run late before that ends",
            WORDS["paused"][1],
        )
    if (open_words := _open(facts) if open_still else None) is not None:
        return "waiting", open_words
    if not facts.redis and all(map(facts.is_silent, facts.workers)):
        return "not-run", (
            "it was not run: no server is up",
            "start one: solocron serve; of a job that ran before, it runs the newest tick within "
            "SOLOCRON_CATCH_UP",
        )
    if open_still:
        return "waiting", ("it has not been run yet", _SWEEP)
    if reason is not None:
        return "skipped", (f"it was not run: a server {WORDS[reason][0]}, which came to nothing",
                           "{by_hand}")  # fmt: skip
    return "not-run", ("it was not run, and is older than the catch-up window", WORDS["missed"][1])


def _left_by_a_server(facts: Facts, reason: str) -> tuple[State, Words]:
    """Of a tick that a server left for a reason of its own, and that nobody has run so far."""
    text, remedy = WORDS[reason]
    survey = facts.survey
    waits = not facts.is_over and survey is not None and survey.settled is not None
    if reason == "overlap" and waits and survey is not None and is_free(survey):
        return "waiting", (f"it has not been run yet: a server {text}", _SWEEP)
    if facts.run_after is not None:
        text += f"; the next that was run is {moment(facts.run_after)}"
    if facts.is_over and reason in PASSING:
        remedy = "{by_hand}"
    return "skipped", (f"it was not run: a server {text}", remedy)


def _before_the_first(facts: Facts) -> tuple[State, Words]:
    """Of a tick of a job that never ran, from before all servers that are up."""
    was_up = any(each.started_ms < facts.due_ms <= each.seen_ms for each in facts.workers)
    then = "the server that was up at that time is gone" if was_up else (
        "no server was up at that time")  # fmt: skip
    first = moment(min(each.started_ms for each in facts.began_after_it))
    return "not-run", (
        f"it was not run: {then}, and the servers that are up began after it, from {first}: they "
        "run a job that never ran from its next tick on",
        "{by_hand}",
    )


def _left_out(facts: Facts) -> str | None:
    """What is said of a tick in whose place a later one was run."""
    settled = facts.survey.settled if facts.survey is not None else None
    after = facts.run_after
    if after is None and settled is not None and settled > facts.tick:
        return "it was left out: a later tick was settled, of which the ledger knows no run"
    if after is None or (facts.job.every and facts.is_open and (settled or -1) <= facts.tick):
        return None
    return (
        f"it was left out: {moment(after)} was run in its place, for no server was up then, or "
        "the run before it went on until then"
    )


def _open(facts: Facts) -> Words | None:
    """What a tick waits for that may still be run, if that is the lock's owner."""
    survey = facts.survey
    if survey is None or is_free(survey):
        return None
    return (
        f"it has not been run yet: its lock is held by {survey.owner[:300]} for "
        f"{span(survey.ttl_ms)} more",
        "wait; or, if that one is no more, free the lock: solocron unlock {key}",
    )


# -- beside it ---------------------------------------------------------------------------------


def _notes(facts: Facts) -> list[tuple[str, Words]]:
    """What else is worth knowing, each with what it is about."""
    notes: list[tuple[str, Words]] = []
    if facts.note:
        notes.append(("schedule", (facts.note, "")))
    elif facts.is_tick:
        for gap in facts.job.calendar.gaps(facts.tick - DAY_MS, facts.tick + DAY_MS):
            if gap.tick == facts.tick:
                notes.append(("schedule", (
                    f"its local time does not exist that day in {facts.job.calendar.zone}, whose "
                    f"clocks are put on from {gap.start:%H:%M} to {gap.end:%H:%M}: it comes at "
                    f"{gap.end:%H:%M}", "",
                )))  # fmt: skip
    if facts.redis:
        text = f"what the servers did is not known: {facts.redis}"
        notes.append(("redis", (text, "mend Redis, then ask again: they tell it when it is back")))
    if facts.database:
        text = f"the ledger is not known: {facts.database}"
        notes.append(("database", (text, "mend the database, then ask again")))
    alive = [each for each in facts.workers if not facts.is_silent(each)]
    notes += [("schedules", each) for each in schedules_that_differ(facts.job, alive)]
    return notes


def schedules_that_differ(job: Job, workers: Sequence[Presence]) -> list[Words]:
    """A line for each other schedule by which servers run the job."""
    others: dict[str, list[str]] = {}
    for each in workers:
        theirs = each.schedules.get(job.name, job.fingerprint)
        if theirs != job.fingerprint:
            others.setdefault(theirs, []).append(each.worker)
    return [
        (f"{', '.join(names[:10])} run it by {theirs[:250]!r}, not {job.fingerprint!r}",
         "give all servers the same SOLOCRON_TIMEZONE, schedules and release")
        for theirs, names in others.items()
    ]  # fmt: skip


def _ledger(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    names = ("state", "attempt", "owner", "origin", "asked_by", "fallback", "started_at",
             "finished_at", "duration_ms", "error")  # fmt: skip
    if run is None:
        return None
    values = {name: value_of(run[name]) for name in ("params", "result", "progress")}
    return {**{name: run[name] for name in names}, **values, "counts": counts_of(values["result"])}


def _lock(survey: Survey | None) -> dict[str, Any] | None:
    if survey is None or not survey.owner:
        return None
    silent = not survey.alive and token_tick(survey.owner) is not None  # others have no such sign
    return {"owner": survey.owner, "ttl_ms": survey.ttl_ms, "silent": silent}


def _pause(facts: Facts) -> dict[str, Any] | None:
    """The pause that holds now, if it is about this tick: it covers it, or keeps it from being run
    late."""
    pause = facts.survey.pause if facts.survey else None
    if pause is None:
        return None
    covers = bool(pause.at_ms) and pause.at_ms <= facts.tick < pause.until_ms(facts.now_ms)
    to_come = facts.now_ms < facts.tick < pause.until_ms(facts.now_ms)
    if not (covers or to_come or (facts.run is None and facts.is_open)):
        return None
    return {
        "until": pause.until_ms(facts.now_ms),
        "by": pause.by,
        "since": pause.at_ms or None,
    }
