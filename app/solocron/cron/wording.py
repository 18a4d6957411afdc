"""The verdicts in words: what a server did with a tick, and what helps if something does."""

from __future__ import annotations

from collections.abc import Mapping

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
                "make the job faster or its schedule wider; or let its ticks queue "
                "(overlap=\"queue\")"),
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
