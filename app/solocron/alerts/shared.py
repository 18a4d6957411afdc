"""The raised alerts of all workers in Redis: where they are claimed while the database is away.

One hash. A field is an alert, its value `<held until, ms>|<home>|<since, ms>|<JSON>`. The home says
who decides that it is over: `redis`, if it was claimed without the database, else `database`; then
the field is a copy, for workers that reach only Redis. Times of holding are by Redis's clock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any, Literal

from solocron.locks.cluster import Link
from solocron.locks.keys import fleet_key
from solocron.storage.alerts import MAX_ALERTS, MAX_TEXT, Alert, AlertId

log = logging.getLogger("solocron.alerts")

Home = Literal["redis", "database"]

_KEEP_MS = 8 * 86_400_000

_FIND = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all, cursor, pages = {}, '0', 0
repeat
  local page = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', 1000)
  cursor, pages = page[1], pages + 1
  for i = 1, #page[2], 2 do all[page[2][i]] = page[2][i + 1] end
until cursor == '0' or pages >= 100
local function parts(field)
  local till, home, since, text = string.match(all[field] or '', '^(%d+)|(%l+)|(%d+)|(.*)$')
  return tonumber(till), home, tonumber(since), text
end
local function put(field, till, home, since, text)
  redis.call('HSET', KEYS[1], field, string.format('%.0f|%s|%.0f|%s', till, home, since, text))
end
"""

# ARGV keep_ms field hold_ms home since_ms json: 1 if it was taken, 0 if it was there.
_TAKE = (
    _FIND
    + """
local field, home, since = ARGV[2], ARGV[4], tonumber(ARGV[5])
local till, theirs, before, text = parts(field)
local is_copy = theirs == 'database' and (home == 'database' or till <= now)
local taken = not till or is_copy
if taken then
  put(field, now + ARGV[3], home, since, ARGV[6])
else
  put(field, math.max(till, now + ARGV[3]), theirs, math.max(before, since), text)
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return taken and 1 or 0
"""
)

# ARGV keep_ms hold_ms field...: those that are there, which are held on.
_HOLD = (
    _FIND
    + """
local found = {}
for i = 3, #ARGV do
  local till, home, since, text = parts(ARGV[i])
  if till then
    put(ARGV[i], math.max(till, now + ARGV[2]), home, since, text)
    found[#found + 1] = ARGV[i]
  end
end
if #found > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return found
"""
)

# ARGV field home before_ms (-1: if nobody holds it): 1 if it was this call that took it out.
_DROP = (
    _FIND
    + """
local till, home, since = parts(ARGV[1])
local before = tonumber(ARGV[3])
if not till or home ~= ARGV[2] then return 0 end
if before < 0 and till > now or before >= 0 and since >= before then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""
)

# Fields, and their values behind `1|` if nobody holds them, else `0|`.
_READ = (
    _FIND
    + """
local found = {}
for field, value in pairs(all) do
  local till = parts(field)
  if till and #value < 8192 and #found < 2000 then
    found[#found + 1] = field
    found[#found + 1] = (till <= now and '1|' or '0|') .. value
  end
end
return found
"""
)


class SharedAlerts:
    """The hash of an environment. Every method may raise LockUnavailable."""

    def __init__(self, link: Link, environment: str) -> None:
        self._link = link
        self._key = fleet_key(environment, "alerts")

    async def take(self, alert: Alert, hold_ms: int, home: Home) -> bool:
        """Add the alert, held for `hold_ms`; False, and it is held on, if another worker added it
        that could not, or this one cannot, reach the database."""
        value = json.dumps(
            {"text": alert.text, "severity": alert.severity, "began": alert.began_ms}
        )
        reply = await self._call(
            _TAKE, _KEEP_MS, _field(alert.id), hold_ms, home, alert.since_ms, value
        )
        return bool(reply)

    async def hold(self, ids: Iterable[AlertId], hold_ms: int) -> set[AlertId]:
        """Hold these on; those that are there."""
        reply = await self._call(_HOLD, _KEEP_MS, hold_ms, *map(_field, ids))
        return {id_ for each in reply if (id_ := _id_of(each.decode(errors="replace")))}

    async def drop(self, id_: AlertId, home: Home, *, before_ms: int | None = None) -> bool:
        """Take out an alert of that home that nobody holds, or one of before `before_ms`; whether
        it was this call that did."""
        before = -1 if before_ms is None else before_ms
        return bool(await self._call(_DROP, _field(id_), home, before))

    async def all(self) -> list[tuple[Alert, bool, str]]:
        """The raised alerts, each with whether nobody holds it any more and its home."""
        reply = [each.decode(errors="replace") for each in await self._call(_READ)]
        pairs = zip(reply[::2], reply[1::2], strict=True)
        found = [each for field, value in pairs if (each := _read(field, value)) is not None]
        return found[:MAX_ALERTS]

    async def close(self) -> None:
        """Close the connection. Safe to call twice; a later call connects again."""
        await self._link.close()

    async def _call(self, script: str, *args: str | int) -> Any:
        return await self._link.call("EVAL", script, 1, self._key, *args, key=self._key)


def _field(id_: AlertId) -> str:
    return "|".join(id_)


def _id_of(field: str) -> AlertId | None:
    name, bar, job = field.partition("|")
    return (name, job) if bar and len(field) <= 200 else None


def _read(field: str, value: str) -> tuple[Alert, bool, str] | None:
    """What a worker wrote of an alert; None for what none of ours wrote."""
    id_ = _id_of(field)
    try:
        over, _, home, since, text = value.split("|", 4)
        told = json.loads(text)
        alert = Alert(*(id_ or ("", "")), int(since), str(told["text"])[:MAX_TEXT],
                      str(told["severity"])[:16], int(told.get("began", since)))  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError):
        id_ = None
    if id_ is None:
        log.warning("ignored what Redis has of an alert: %r", field[:100])
        return None
    return alert, over == "1", home
