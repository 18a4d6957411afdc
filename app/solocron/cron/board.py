"""The board: what the workers tell each other, in Redis, of the ticks they tried and of themselves.

Each sweep, in one pipeline: the journal's new entries, each into the hash of its tick (a field per
worker), and this worker's presence into the hash of all workers. A key and its time to live are
written by one script. It has a connection of its own, so that nothing which goes wrong here,
such as a user without the rights, costs the locks theirs. Nobody depends on it: without Redis
entries wait, a bounded number of them, and what is read is not trusted to be ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

from solocron.clock import Clock
from solocron.cron.job import Job
from solocron.cron.journal import MAX_DETAIL, Entry, Journal
from solocron.cron.outcome import VERDICTS
from solocron.errors import LockUnavailable
from solocron.locks.cluster import Link
from solocron.locks.keys import check_key, fleet_key
from solocron.locks.session import Command
from solocron.version import __version__

log = logging.getLogger("solocron.cron")

DAY_MS = 86_400_000
_INTERVALS = 500
_MAX_WAITING = 5_000
_PER_WRITE = 500
_TIDY_EVERY_MS = 3_600_000
_MAX_SCHEDULES = 100
_MAX_TEXT = 500
_MAX_WHOLE = 2**53

# KEYS hash; ARGV field value ttl_ms: 1 if the field is new. A key of another type is somebody
# else's and stays as it is.
_WRITE = """
local done = redis.pcall('HSET', KEYS[1], ARGV[1], ARGV[2])
if type(done) == 'number' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return done
end
if not string.find(done.err, 'WRONGTYPE', 1, true) then return done end
"""

# KEYS hash; ARGV most_fields most_bytes (of a value) most_bytes_in_all. Fields and values in turn,
# as many as these and 1,000 pages allow.
_READ = """
local cursor, found, bytes, pages = '0', {}, 0, 0
repeat
  local page = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', 100)
  cursor, pages = page[1], pages + 1
  for i = 1, #page[2], 2 do
    local name, value = page[2][i], page[2][i + 1]
    if #name <= 400 and #value <= tonumber(ARGV[2]) then
      bytes = bytes + #name + #value
      if #found >= 2 * tonumber(ARGV[1]) or bytes > tonumber(ARGV[3]) then return found end
      found[#found + 1] = name
      found[#found + 1] = value
    end
  end
until cursor == '0' or pages >= 1000
return found
"""
_LIMITS = (1_000, 64 * 1024, 4 * 1024 * 1024)


@dataclass(frozen=True)
class State:
    """How a worker is: by how much its clock is ahead of Redis's (negative: behind) and its event
    loop late, in ms; `up` or `down` of what it needs; how many ticks it is trying or running."""

    skew_ms: int = 0
    loop_lag_ms: int = 0
    redis: str = ""
    database: str = ""
    jobs_running: int = 0


@dataclass(frozen=True, kw_only=True)
class Presence(State):
    """A worker, one process, as it last told of itself: times in UTC epoch ms, and each of its
    jobs (100 at most) with the schedule it runs it by."""

    worker: str
    host: str
    pid: int
    version: str
    started_ms: int
    seen_ms: int
    schedules: Mapping[str, str]


class Board:
    """Tells of this worker and reads of all. Run `run()` as a task; it ends when cancelled.

    `worker` names this process: `host:pid:` and what tells containers apart. `locks_up` says
    whether Redis is there, which a board that cannot be written is told apart from.
    """

    def __init__(
        self, link: Link, journal: Journal, *, clock: Clock, environment: str, sweep_s: float,
        locks_up: Callable[[], bool],
    ) -> None:  # fmt: skip
        host, pid = socket.gethostname()[:100], os.getpid()
        self.worker = f"{host}:{pid}:{uuid.uuid4().hex[:6]}"
        self._link = link
        self._journal = journal
        self._clock = clock
        self._sweep_s = sweep_s
        self._locks_up = locks_up
        self._key = fleet_key(environment, "workers")
        self._self = {"host": host, "pid": pid, "version": __version__}
        self._jobs: Mapping[str, Job] = {}
        self._state: Callable[[], State] | None = None
        self._waiting: dict[tuple[str, int], Entry] = {}
        self._tidied_ms = 0.0
        self._failed = 0
        self._is_on = False
        self.losses = 0  # how often Redis was found to have lost this worker, and so all
        journal.listen(self._take)

    @property
    def waiting(self) -> int:
        """How many entries Redis has not been told of."""
        return len(self._waiting)

    def presence(self) -> Presence | None:
        """This worker as it is now; None when it does not run."""
        return None if self._state is None else read_presence(self.worker, self._presence())

    def _take(self, entry: Entry) -> None:
        place = (entry.job, entry.tick)
        self._waiting.pop(place, None)
        self._waiting[place] = self._journal.standing(*place) or entry
        if len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    # -- telling ---------------------------------------------------------------------------

    async def run(self, jobs: Mapping[str, Job], state: Callable[[], State]) -> None:
        """Tell of the entries of `jobs`, and that this worker lives, each sweep."""
        self._jobs, self._state = jobs, state
        started_ms = int(self._clock.now_ms())
        self._self["started_ms"] = started_ms
        while True:
            await self.publish()
            await asyncio.sleep(self._sweep_s * random.uniform(0.8, 1.2))

    async def publish(self) -> bool:
        """Tell what is new; False when Redis did not take it all. Raises nothing."""
        try:
            await self._publish()
            await self._tidy()
        except LockUnavailable as error:
            self._failed += 1
            if self._failed == 2 and self._locks_up():  # else the locks say so
                log.warning("What becomes of ticks is not told to the other servers: %s", error)
            return False
        except Exception:
            log.exception("The board was not written; the next sweep tries again")
            return False
        self._failed = 0
        return True

    async def leave(self) -> None:
        """Tell what is new for the last time, and that this worker is no more; at once without
        Redis. Raises nothing."""
        self._state = None
        while self._link.is_up and self._waiting:
            if not await self.publish():
                return
        self._is_on = False
        if self._link.is_up:
            await self._forget([self.worker])

    async def close(self) -> None:
        """Close the connection. Safe to call twice; a later call connects again."""
        await self._link.close()

    async def _publish(self) -> None:
        writes: dict[str, Command] = {}
        if self._state is not None:
            writes[self._key] = _write(self._key, self.worker, self._presence(), DAY_MS)
        batch = list(islice(self._waiting.items(), _PER_WRITE))
        for (name, tick), entry in batch:
            job = self._jobs.get(name)
            if job is not None:
                key = tick_key(job, tick)
                writes[key] = _write(key, self.worker, _text_of(entry), keep_ms(job, tick))
        if writes:
            replies = await self._link.call_all(list(writes.values()), list(writes))
            if self._key in writes:
                self._note_loss(is_lost=replies[0] == 1)
                self._is_on = True
        for place, entry in batch:
            if self._waiting.get(place) is entry:
                del self._waiting[place]

    def _note_loss(self, *, is_lost: bool) -> None:
        """Redis has this worker no more though it had: it was restarted without its data."""
        self.losses += self._is_on and is_lost

    def _presence(self) -> str:
        assert self._state is not None
        schedules = {
            name: job.fingerprint for name, job in islice(self._jobs.items(), _MAX_SCHEDULES)
        }
        now_ms = int(self._clock.now_ms())
        return _json({**self._self, **asdict(self._state()), "seen_ms": now_ms,
                      "schedules": schedules})  # fmt: skip

    async def _tidy(self) -> None:
        """Now and then, take out workers that were not seen for a day, and what is unreadable."""
        now_ms = self._clock.now_ms()
        if now_ms < self._tidied_ms + _TIDY_EVERY_MS:
            return
        self._tidied_ms = now_ms
        gone = [
            name
            for name, text in (await self._read(self._key)).items()
            if (found := read_presence(name, text)) is None or found.seen_ms < now_ms - DAY_MS
        ]
        await self._forget(gone)

    async def _forget(self, workers: Sequence[str]) -> None:
        if not workers:
            return
        try:
            await self._link.call("HDEL", self._key, *workers, key=self._key)
        except LockUnavailable as error:
            log.debug("workers that are gone stay on the board: %s", error)

    # -- reading ---------------------------------------------------------------------------

    async def verdicts(self, job: Job, tick: int) -> dict[str, Entry]:
        """What each worker did with the tick, by worker, as far as they have told (see `run`).
        Raises LockUnavailable."""
        found = await self._read(tick_key(job, tick))
        entries = {name: read_entry(job.name, tick, text) for name, text in sorted(found.items())}
        return {name: entry for name, entry in entries.items() if entry is not None}

    async def workers(self) -> list[Presence]:
        """The workers that were seen within a day, by name; `seen_ms` says when. Raises
        LockUnavailable."""
        found = await self._read(self._key)
        self._note_loss(is_lost=self.worker not in found)
        presences = [read_presence(name, text) for name, text in sorted(found.items())]
        since_ms = self._clock.now_ms() - DAY_MS
        return [each for each in presences if each is not None and each.seen_ms >= since_ms]

    async def _read(self, key: str) -> dict[str, str]:
        """The fields of a hash, as many as the limits allow, those that are no UTF-8 garbled."""
        reply = await self._link.call("EVAL", _READ, 1, key, *_LIMITS, key=key)
        texts = [each.decode(errors="replace") for each in reply]
        return dict(zip(texts[::2], texts[1::2], strict=True))


def tick_key(job: Job, tick: int) -> str:
    """The hash of a tick, beside the job's lock."""
    return f"{{{check_key(job.lock_key)}}}:tick:{tick}"


def keep_ms(job: Job, tick: int) -> int:
    """How long a tick stays on the board: a day, or the time of 500 ticks if that is shorter."""
    return min(DAY_MS, _INTERVALS * (job.calendar.next_after(tick) - tick))


def _write(key: str, field: str, value: str, ttl_ms: int) -> Command:
    return ("EVAL", _WRITE, 1, key, field, value, ttl_ms)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _text_of(entry: Entry) -> str:
    """The entry as JSON; job and tick are the key's."""
    return _json({name: value for name, value in asdict(entry).items()
                  if name not in ("job", "tick")})  # fmt: skip


def read_entry(job: str, tick: int, text: str) -> Entry | None:
    """What a worker wrote of a tick; None, and a line in the log, for what none of ours wrote."""
    try:
        found = _values_of(Entry, json.loads(text), ("job", "tick"))
        if found["verdict"] not in VERDICTS:
            raise ValueError("no such verdict")
        return Entry(job, tick, **{**found, "detail": found["detail"][:MAX_DETAIL]})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("ignored what Redis has of %s tick %d: %s", job, tick, str(error)[:100])
        return None


def read_presence(worker: str, text: str) -> Presence | None:
    """What a worker wrote of itself; None, and a line in the log, for what none of ours wrote."""
    try:
        value = json.loads(text)
        found = _values_of(Presence, value, ("worker", "schedules"))
        schedules = value["schedules"]
        if not isinstance(schedules, dict) or len(schedules) > _MAX_SCHEDULES:
            raise ValueError("schedules are no object, or too many")
        if not all(isinstance(each, str) for each in schedules.values()):
            raise ValueError("a schedule is no text")
        return Presence(worker=worker, schedules=schedules, **found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("ignored what Redis has of a worker: %s", str(error)[:100])
        return None


def _values_of(kind: type[Any], value: Any, but: Sequence[str]) -> dict[str, Any]:
    """The fields of `kind` in an object of JSON, each a text or a whole number as its type is;
    others are left out. Raises ValueError, TypeError or KeyError."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    found = {each.name: (value[each.name], each.type) for each in fields(kind)
             if each.name not in but}  # fmt: skip
    for name, (given, wanted) in found.items():
        whole = isinstance(given, int) and not isinstance(given, bool) and abs(given) < _MAX_WHOLE
        if not (whole if wanted == "int" else isinstance(given, str) and len(given) <= _MAX_TEXT):
            raise ValueError(f"{name} is no {'whole number' if wanted == 'int' else 'short text'}")
    return {name: given for name, (given, _) in found.items()}
