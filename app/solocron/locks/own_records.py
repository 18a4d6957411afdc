"""The runs that this process alone knows of: those it began, or had to let go, while Redis was
away. In memory, and gone with the process; pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from solocron.clock import Clock
from solocron.ledger import Expired, RunKey, State, Verdict

Record = dict[str, Any]
_MOST = 1000


class OwnRecords:
    """Records by job and tick, the columns of `job_runs` by name; `owner` is this server."""

    def __init__(self, clock: Clock, owner: str) -> None:
        self._clock = clock
        self._owner = owner
        self._records: dict[tuple[str, int], Record] = {}

    def begin(
        self, first: Record, *, lease_ms: int, max_attempts: int, fresh: bool, again: int
    ) -> Verdict:
        """As `Ledger.begin`; `first` is the record of a first attempt."""
        at_ms, run = self._now_ms(), self._records.get((first["job"], first["tick"]))
        if run is None:
            self._put({**first, "lease_until": at_ms + lease_ms})
            return self._say("run", first)
        if run["state"] != "running":
            if run["state"] != "failed" or run["attempt"] != again:
                return self._say("done", run)
            run |= {"state": "running", "finished_at": None, "duration_ms": None, "error": None,
                    "origin": first["origin"], "started_at": first["started_at"]}  # fmt: skip
        elif fresh or run["lease_until"] > at_ms:
            return self._say("held", run)
        elif run["attempt"] >= max_attempts and run["lease_until"] and not again:
            error = f"gave up: {run['attempt']} attempts ended without a word from their owner"
            run |= {"state": "failed", "finished_at": first["started_at"], "error": error}
            return self._say("done", run)
        run |= {"attempt": run["attempt"] + 1, "lease_until": at_ms + lease_ms, "fallback": True,
                "stamp": first["stamp"]}  # fmt: skip
        return self._say("run", run)

    def _say(self, kind: Literal["run", "done", "held"], run: Record) -> Verdict:
        return Verdict(kind, run["attempt"], self._owner, run.get("params"))

    def has(self, key: RunKey) -> bool:
        """Whether the run is known here, by this or an earlier attempt, and not yet over."""
        run = self._records.get((key.job, key.tick))
        return run is not None and run["state"] == "running" and run["attempt"] == key.attempt

    def change(self, key: RunKey, changes: Record, *, lease_ms: int = -1) -> bool:
        """Change the run's record, and its lease unless `lease_ms` is -1; False when the attempt is
        not current here."""
        if not self.has(key):
            return False
        run = self._records[key.job, key.tick]
        run |= changes
        if lease_ms >= 0:
            run["lease_until"] = self._now_ms() + lease_ms
        return True

    def let_go(self, run: Record, *, stopping: bool) -> None:
        """Note a run that Redis knows of, or may, and that ended here without that being told: it
        may be begun again here while Redis is away. What is known already stays."""
        known = self._records.get((run["job"], run["tick"]))
        if known is None or (known["state"] == "running" and known["attempt"] < run["attempt"]):
            until = 0 if stopping else self._now_ms()
            self._put({**run, "lease_until": until})

    def of(self, job: str) -> list[tuple[Record, int]]:
        """The job's records, each with how long its lease goes on, in ms; -1 if it was given
        back."""
        now_ms = self._now_ms()
        return [
            (dict(run), max(0, int(until - now_ms)) if (until := run["lease_until"]) else -1)
            for run in self._records.values() if run["job"] == job
        ]  # fmt: skip

    def drop(self, run: Record) -> None:
        """Forget a record that is as it was when it was read."""
        place = (run["job"], run["tick"])
        if self._records.get(place) == run:
            del self._records[place]

    def newest(self, job: str) -> int:
        """The newest scheduled tick known here, or -1."""
        return max((run["tick"] for run in self._of(job, "schedule")), default=-1)

    def unfinished(self, job: str, since_ms: int, before_ms: int) -> list[int]:
        """As `Ledger.unfinished`; nothing is closed."""
        return sorted(
            run["tick"] for run in self._of(job, "schedule")
            if run["state"] == "running" and since_ms <= run["tick"] < before_ms
        )  # fmt: skip

    def expired(self, job: str, since_ms: int) -> list[Expired]:
        """As `Ledger.expired`, of one job."""
        at_ms = self._now_ms()
        return [
            Expired(job, run["tick"], run["origin"])
            for run in self._of(job, "schedule", "manual")
            if run["state"] == "running" and run["tick"] >= since_ms and run["lease_until"] <= at_ms
        ]  # fmt: skip

    def states(self, job: str, since_ms: int, until_ms: int) -> dict[int, State]:
        """As `Ledger.states`."""
        runs = [run for (of, _), run in self._records.items() if of == job]
        return {
            run["tick"]: (run["state"], run["attempt"])
            for run in sorted(runs, key=lambda run: int(run["tick"]))
            if since_ms <= run["tick"] <= until_ms
        }  # fmt: skip

    def _now_ms(self) -> float:
        """Leases run by this process's own clock, which is never set."""
        return self._clock.monotonic() * 1000

    def _of(self, job: str, *origins: str) -> Iterable[Record]:
        return (
            run for (of, _), run in self._records.items() if of == job and run["origin"] in origins
        )  # fmt: skip

    def _put(self, run: Record) -> None:
        """Add it as the newest, and leave out the oldest of too many: none that still runs, as long
        as others are left."""
        place = (run["job"], run["tick"])
        self._records.pop(place, None)
        self._records[place] = run
        if len(self._records) > _MOST:
            over = (each for each, run in self._records.items() if run["state"] != "running")
            del self._records[next(over, next(iter(self._records)))]
