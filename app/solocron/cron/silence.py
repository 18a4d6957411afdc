"""Which servers are silent: they told nothing for a while, and did not stop by themselves, for then
they would have left the board. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solocron.cron.board import Presence

SEE_WHY = "see whether it is gone, frozen or cut off from Redis"


def is_silent(worker: Presence, now_ms: float, silent_ms: float) -> bool:
    """Whether a server gave its last sign of life over `silent_ms` ago, by the clocks."""
    return worker.seen_ms < now_ms - silent_ms


def state_of(run: Mapping[str, Any], now_ms: float) -> str | None:
    """How a run of the ledger is: `silent` if it is running and its owner's lease has ended."""
    state: str | None = run.get("state")
    gone = state == "running" and (run.get("lease_until") or 0) <= now_ms
    return "silent" if gone else state


def not_replaced(workers: Sequence[Presence], silent: Collection[str]) -> list[Presence]:
    """Those of the `silent` ones that no other has replaced, longest silent first: each server that
    started since, also one that is silent by now, is in the place of the one silent first."""
    starts = sorted((each.started_ms - each.skew_ms, each.worker) for each in workers)
    gone = []
    for each in sorted(workers, key=lambda each: each.seen_ms - each.skew_ms):
        if each.worker not in silent:
            continue
        last_ms = each.seen_ms - each.skew_ms
        later = [start for start in starts if start[0] > last_ms and start[1] != each.worker]
        if later:
            starts.remove(later[0])
        else:
            gone.append(each)
    return gone
