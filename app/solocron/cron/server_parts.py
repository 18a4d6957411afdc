"""What each server did with a tick, or why it has told nothing of it. Pure; a part of `explain`."""

from __future__ import annotations

from typing import Any

from solocron.cron.board import Presence, keep_ms
from solocron.cron.facts import Facts
from solocron.cron.journal import Entry
from solocron.cron.silence import SEE_WHY
from solocron.cron.wording import WORDS, Words, moment, span

_BY_HAND = "if it is still wanted, run the job now{where}: solocron run {job}"
_ELSEWHERE = " (where SOLOCRON_APP names its code, not here)"
_LOOK = f"{SEE_WHY}: systemctl status solocron, docker compose ps or kubectl get pods, and its log"

PASSING = ("database-down", "paused", "clock-skew")  # helped in time, the tick would be run


def part_of(facts: Facts, name: str) -> dict[str, Any]:
    """What one server did, and why."""
    entry = facts.verdicts.get(name)
    presence = next((each for each in facts.workers if each.worker == name), None)
    if entry is not None:
        text, remedy = said_text(entry), _remedy(facts, entry.verdict)
        if presence is None:
            text += "; it has been stopped since"
        elif facts.is_silent(presence):
            text += f"; it has been silent since {moment(presence.seen_ms)}"
    else:
        assert presence is not None
        text, remedy = _said_nothing(facts, presence)
    return {
        "worker": name, "verdict": entry.verdict if entry else None,
        "alive": presence is not None and not facts.is_silent(presence),
        "text": text, "remedy": filled(remedy, facts),
        "late_ms": entry.late_ms if entry and entry.begun else None,
        "duration_ms": entry.duration_ms if entry and entry.begun else None,
        "at": entry.at_ms if entry else None,
    }  # fmt: skip


def said_text(entry: Entry) -> str:
    """What a server says that it did."""
    text = WORDS[entry.verdict][0]
    if entry.begun:
        text += f", {span(entry.late_ms)} after its time, in {span(entry.duration_ms)}"
        text += f", as attempt {entry.attempt}" if entry.attempt > 1 else ""
    return f"{text}: {entry.detail}" if entry.detail else text


def _remedy(facts: Facts, verdict: str) -> str:
    """What is to be done for what a server did; nothing for what is over and hurt nobody."""
    if facts.run is not None and facts.run["state"] == "succeeded":
        if verdict != "late" and not (verdict == "fallback" and facts.redis):
            return ""
    elif facts.is_over and verdict in PASSING:
        return ""
    return WORDS[verdict][1]


def _said_nothing(facts: Facts, worker: Presence) -> Words:
    """Why a server has told nothing of the tick."""
    tick, run = facts.tick, facts.run
    began = run is not None and facts.owner(run["owner"]) == worker
    if worker.started_ms > tick:
        return f"was not there yet: it started {moment(worker.started_ms)}", ""
    if run is not None and run["origin"] != "schedule" and not began:
        how = "a backfill" if run["origin"] == "backfill" else "a run by hand"
        return f"had nothing to do with it: it was {how}, of {run['owner']}", ""
    if run is None and not facts.is_tick:
        return "had nothing to do: there is no tick then", ""
    if facts.is_silent(worker):
        return _of_silent(facts, worker, began=began)
    theirs = worker.schedules.get(facts.job.name)
    if theirs is None:
        return "has no job of that name", "run the same release on all servers"
    if theirs != facts.job.fingerprint:
        return f"runs the job by another schedule, {theirs[:250]!r}", (
            "give all servers the same SOLOCRON_TIMEZONE and schedules"
        )
    ago_ms = facts.now_ms - facts.due_ms
    if ago_ms < 0:
        return "waits for it", ""
    if ago_ms < facts.silent_ms:
        return "has not told yet", f"ask again in {span(facts.silent_ms - ago_ms)}"
    if facts.now_ms - tick > keep_ms(facts.job, tick):
        return "told of it too long ago: Redis keeps a day, or 500 ticks", ""
    return "has told nothing, though it was up", (
        "its log around then: a blocked event loop, a clock that is behind, or a run begun then "
        "that still goes on"
    )


def _of_silent(facts: Facts, worker: Presence, *, began: bool) -> Words:
    """Of one that has gone without a word: there is nothing to see to once it was replaced."""
    tick, seen = facts.tick, moment(worker.seen_ms)
    if facts.due_ms > facts.now_ms:
        text = f"is silent: last seen {seen}"
    elif worker.seen_ms < tick and not began:
        text = f"was dead by then: last seen {seen}, {span(tick - worker.seen_ms)} before"
    else:
        text = f"died with it, or after it: last seen {seen}, without a word about it"
    if worker in facts.missing:
        return text, _LOOK
    return f"{text}; another was started in its place", ""


def filled(remedy: str, facts: Facts) -> str:
    """A remedy with the job's name and key in it."""
    job = facts.job
    by_hand = _BY_HAND.format(job=job.name, where="" if facts.has_code else _ELSEWHERE)
    return remedy.format(job=job.name, key=job.lock_key, by_hand=by_hand)
