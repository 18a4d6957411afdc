"""What Redis answers: the results of a claim, and a survey of what it holds. Pure values.

Each answer has its own type, so that none can be taken for another: neither "held" for "not
reachable" (that is an error), nor a bool for a token.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from solocron.errors import LockNotAcquired
from solocron.locks.lease import Lease

GRANTED = b"granted"
_MAX_BY = 200
# The same form as in the Lua scripts: host:pid:uuid:tick.
_TOKEN = re.compile(r".+:[0-9]+:[0-9a-fA-F]+:(-?[0-9]{1,15})", re.DOTALL)


def token_tick(owner: str) -> int | None:
    """The tick in an owner's token (-1: a lock without a tick); None for another form, which an
    older server or a person wrote."""
    match = _TOKEN.fullmatch(owner)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Granted:
    """The lock is ours. `previous_owner` is the silent owner it was taken over from, or '';
    `settled` the newest settled tick (UTC epoch ms), or -1."""

    lease: Lease
    previous_owner: str = ""
    settled: int = -1


@dataclass(frozen=True)
class Held:
    """Another owner has it, for at most `ttl_ms` more (-1: without end)."""

    owner: str
    ttl_ms: int

    @property
    def tick(self) -> int | None:
        """The tick the owner runs (UTC epoch ms); None when it runs none or is an older server."""
        tick = token_tick(self.owner)
        return None if tick is None or tick < 0 else tick

    def refusal(self, key: str) -> LockNotAcquired:
        """What who wants the lock `key` is told."""
        return LockNotAcquired(f"{key} is held by {self.owner} for {self.ttl_ms} ms more")


@dataclass(frozen=True)
class Done:
    """The tick, or a later one, is settled: `settled` is the newest (UTC epoch ms)."""

    settled: int


@dataclass(frozen=True)
class Paused:
    """An operator paused the job."""


@dataclass(frozen=True)
class Early:
    """By Redis's clock the tick's time has not come: the clock here is wrong, or Redis's is."""


Claim = Granted | Held | Done | Paused | Early


def read_refusal(answer: list[Any]) -> Held | Done | Paused | Early:
    """The CLAIM script's answer when it is not `granted`."""
    word, text = answer[0].decode(), answer[1].decode(errors="replace")
    if word == "held":
        return Held(text, int(answer[2]))
    if word == "done":
        return Done(int(text))
    return Early() if word == "early" else Paused()


@dataclass(frozen=True)
class Pause:
    """A job's pause: who made it ('': unknown), when (UTC epoch ms; 0: unknown), and for how many
    ms more it holds."""

    by: str
    at_ms: int
    left_ms: int

    def until_ms(self, now_ms: float) -> int:
        """When it ends (UTC epoch ms), if it was read at `now_ms`."""
        return int(now_ms + self.left_ms)


@dataclass(frozen=True)
class Survey:
    """What Redis knows of one job. `settled` is the newest settled tick, or None; `look`: it is
    this server's turn to look for silent runs in the ledger."""

    owner: str
    ttl_ms: int
    alive: bool
    settled: int | None
    pause: Pause | None
    look: bool = False

    @property
    def paused(self) -> bool:
        """Whether an operator paused the job."""
        return self.pause is not None


def read_survey(row: list[Any]) -> Survey:
    """One row of the SURVEY script's answer."""
    return Survey(
        owner=row[0].decode(errors="replace"),
        ttl_ms=int(row[1]),
        alive=bool(row[2]),
        settled=int(row[3]) if row[3] else None,
        pause=read_pause(row[4], int(row[5])) if row[4] else None,
        look=bool(row[6]),
    )


def pause_text(by: str, at_ms: int) -> str:
    """What stands in the key of a pause."""
    return json.dumps({"by": by[:_MAX_BY], "at_ms": at_ms})


def read_pause(text: bytes, left_ms: int) -> Pause:
    """What the key of a pause says; whatever is in it, the job is paused."""
    try:
        value = json.loads(text)
        return Pause(str(value["by"])[:_MAX_BY], int(value["at_ms"]), left_ms)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return Pause("", 0, left_ms)
