"""Says when a job fails to get its lock again and again, once, and once when it gets it again.

Only that Redis gives no answer about it is a failure. Any answer is none, and ends the row: also
that another server has the lock, be it for an earlier tick. Pure: it decides, the runner speaks.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

ALARM_AFTER = 3


class LockAlarm:
    """Counts failures in a row per job; `raised` are the jobs whose alarm is on."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self.raised: set[str] = set()

    def note(self, job: str, *, failed: bool) -> Literal["raised", "resolved"] | None:
        """Take in one attempt; what changed by it."""
        if failed:
            self._failures[job] += 1
            if self._failures[job] >= ALARM_AFTER and job not in self.raised:
                self.raised.add(job)
                return "raised"
            return None
        self._failures.pop(job, None)
        if job in self.raised:
            self.raised.discard(job)
            return "resolved"
        return None
