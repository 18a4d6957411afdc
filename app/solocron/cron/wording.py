"""Verdicts, times and lengths of time in words; and what helps a verdict, if something does."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

SHOWN_ERROR = 500  # characters of it, where it is not asked for by itself
Words = tuple[str, str]  # what is said, and its remedy ('': none is needed)

WORDS: Mapping[str, Words] = {
    "ran": ("ran it", ""),
    "late": ("ran it, late", "if that goes on: `solocron doctor`, and the log around then, say "
             "whether its event loop was blocked, or Redis or the database slow"),
    "recovered": ("ran it, taken over from a silent server or found by a sweep", ""),
    "fallback": ("ran it without Redis: the database decided who does",
                 "see what ails Redis: solocron doctor"),
    "failed": ("ran it in vain", "mend what the error says; {by_hand}"),
    "lost": ("began it and had to let it go", "nothing, if another server has it; else its log "
             "says why"),
    "held": ("left it: another server was running it", ""),
    "done": ("left it: it had been run", ""),
    "overlap": ("left it: the tick before was still being run",
                "if its runs take longer than its ticks are apart: make the job faster or its "
                "schedule wider; or let its ticks queue (overlap=\"queue\")"),
    "redis-down": ("left it: Redis was away, and its policy is to skip then",
                   "mend Redis, or set SOLOCRON_ON_REDIS_DOWN=run: the database decides then"),
    "database-down": ("could not begin it: the database was away", "mend the database: ticks "
                      "wait for it, no longer than SOLOCRON_CATCH_UP"),
    "paused": ("left it: the job was paused", "solocron resume {job}"),
    "clock-skew": ("did not begin it: by Redis's clock its time had not come",
                   "set that server's clock by NTP (timedatectl, chronyc tracking)"),
    "missed": ("found it too late: it was older than the catch-up window",
               "see that a server is up at each tick, or set a longer SOLOCRON_CATCH_UP; "
               "{by_hand}"),
    "duplicate-prevented": ("was kept from running it again: the ledger had it", ""),
}  # fmt: skip


def moment(ms: float | None) -> str:
    """A time (UTC epoch ms) as ISO 8601."""
    return "never" if ms is None else iso(datetime.fromtimestamp(int(ms) / 1000, UTC))


def iso(moment: datetime) -> str:
    """To the second, as all else that people read."""
    return moment.isoformat(timespec="seconds")


def span(ms: float) -> str:
    """A length of time in words of at most two units."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes = int(ms // 60_000)
    if minutes < 60:
        return f"{minutes} min {int(ms // 1000) % 60} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days"
