"""When the jobs of the benchmark come due. Pure."""

from __future__ import annotations

from dataclasses import dataclass

NEVER = "0 0 1 1 *"
_EARLY_S = 0.05  # a body may begin so much before its time, and no later than this before the next


@dataclass(frozen=True)
class Plan:
    """So many jobs, each due every `period` s (which divides a minute), job n at its second n, or
    all `together`; a period of 0: none comes due."""

    jobs: int
    period: int
    together: bool = False

    def seconds(self, job: int) -> set[int]:
        """The seconds of a minute in which the job comes due."""
        return set(range(self._first(job), 60, self.period)) if self.period else set()

    def _first(self, job: int) -> int:
        return 0 if self.together else job % self.period

    def cron(self, job: int, *, last: bool = False) -> str:
        """Its cron expression of six fields, the seconds first or `last`."""
        if not self.period:
            return NEVER
        due = ",".join(map(str, sorted(self.seconds(job))))
        return f"* * * * * {due}" if last else f"{due} * * * * *"

    def late_ms(self, job: int, now_s: float) -> float:
        """How late the job began that began at this time (epoch s)."""
        return 1000 * ((now_s - self._first(job) + _EARLY_S) % self.period - _EARLY_S)
