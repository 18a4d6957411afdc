"""The Lua scripts of the run records: what `storage.runs` does in transactions, Redis does here.

KEYS of each: order (the ticks, a sorted set), runs (tick -> record as JSON) and running (the ticks
that have not ended), of one job and so in one slot. A record has the columns of `job_runs`; leases
are judged by this Redis's clock.
"""

from __future__ import annotations

_LIBRARY = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(tick)
  local text = redis.call('HGET', KEYS[2], tick)
  return text and cjson.decode(text)
end
local function write(tick, run, keep)
  redis.call('HSET', KEYS[2], tick, cjson.encode(run))
  redis.call('ZADD', KEYS[1], tick, tick)
  if run.state == 'running' then
    redis.call('ZADD', KEYS[3], tick, tick)
  else
    redis.call('ZREM', KEYS[3], tick)
  end
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], keep) end
end
local function close(tick, run, at, error, keep)
  run.state, run.finished_at, run.error = 'failed', tonumber(at), error
  write(tick, run, keep)
end
"""

# ARGV tick record (of a first attempt: its owner, fallback and stamp are a later one's, too)
# lease_ms max_attempts keep_ms most now_ms fresh again. Answers with the verdict, its attempt, its
# owner and the run's params.
BEGIN = (
    _LIBRARY
    + """
local tick, first, keep = ARGV[1], cjson.decode(ARGV[2]), ARGV[5]
local fresh, again = ARGV[8] == '1', tonumber(ARGV[9])
local run = read(tick)
if not run then
  first.lease_until = now + ARGV[3]
  write(tick, first, keep)
  local old = redis.call('ZRANGE', KEYS[1], 0, -1 - ARGV[6])
  for _, each in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', tick - keep, 'BYSCORE')) do
    old[#old + 1] = each
  end
  for _, each in ipairs(old) do
    if each ~= tick then
      redis.call('ZREM', KEYS[1], each)
      redis.call('ZREM', KEYS[3], each)
      redis.call('HDEL', KEYS[2], each)
    end
  end
  return {'run', 1, first.owner, first.params or ''}
end
local function say(kind) return {kind, run.attempt, run.owner, run.params or ''} end
if run.state ~= 'running' then
  if run.state ~= 'failed' or run.attempt ~= again then return say('done') end
  run.state, run.finished_at, run.duration_ms, run.error = 'running', nil, nil, nil
  run.origin, run.started_at = first.origin, first.started_at
elseif run.stamp == first.stamp then
  return say('run') -- this very question, whose reply was lost
elseif fresh or run.lease_until > now then
  return say('held')
elseif run.attempt >= tonumber(ARGV[4]) and run.lease_until ~= 0 and again == 0 then
  local error = 'gave up: %d attempts ended without a word from their owner'
  close(tick, run, ARGV[7], string.format(error, run.attempt), keep)
  return say('done')
end
local before = run.owner
run.attempt, run.lease_until = run.attempt + 1, now + ARGV[3]
run.owner, run.fallback, run.stamp = first.owner, first.fallback, first.stamp
write(tick, run, keep)
return {'run', run.attempt, before, run.params or ''}
"""
)

# ARGV tick attempt changes lease_ms (-1: as it is) keep_ms. 1 while the attempt is current, or
# when this very change was made before and its reply lost.
CHANGE = (
    _LIBRARY
    + """
local run, changes = read(ARGV[1]), cjson.decode(ARGV[3])
if not run then return 0 end
if changes.stamp and run.stamp == changes.stamp then return 1 end
if run.attempt ~= tonumber(ARGV[2]) then return 0 end
if run.state ~= 'running' then return run.state == changes.state and 1 or 0 end
for name, value in pairs(changes) do run[name] = value end
if tonumber(ARGV[4]) >= 0 then run.lease_until = now + ARGV[4] end
write(ARGV[1], run, ARGV[5])
return 1
"""
)

# ARGV tick record lease_ms (-1: given back) keep_ms. Takes in what a server noted while this Redis
# was away: 1 unless what is here is newer, or another server's.
ADOPT = (
    _LIBRARY
    + """
local run, theirs = read(ARGV[1]), cjson.decode(ARGV[2])
if run then
  if run.state ~= 'running' or run.attempt > theirs.attempt then return 0 end
  if run.attempt == theirs.attempt and run.owner ~= theirs.owner then return 0 end
end
theirs.lease_until = tonumber(ARGV[3]) >= 0 and now + ARGV[3] or 0
write(ARGV[1], theirs, ARGV[4])
return 1
"""
)

# ARGV since before now_ms keep_ms. The scheduled ticks in between that run; older silent ones are
# closed.
UNFINISHED = (
    _LIBRARY
    + """
local found, since = {}, tonumber(ARGV[1])
for _, tick in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', '(' .. ARGV[2], 'BYSCORE')) do
  local run = read(tick)
  if run and run.origin == 'schedule' then
    if tonumber(tick) >= since then
      found[#found + 1] = tick
    elseif run.lease_until <= now then
      local error = 'gave up: its owner went silent and the catch-up window has passed'
      close(tick, run, ARGV[3], error, ARGV[4])
    end
  end
end
return found
"""
)

# ARGV since. The ticks from then on that run, whose lease ended and which are no backfill, each
# followed by its origin.
EXPIRED = (
    _LIBRARY
    + """
local found = {}
for _, tick in ipairs(redis.call('ZRANGE', KEYS[3], ARGV[1], '+inf', 'BYSCORE')) do
  local run = read(tick)
  if run and run.lease_until <= now and (run.origin == 'schedule' or run.origin == 'manual') then
    found[#found + 1], found[#found + 2] = tick, run.origin
  end
end
return found
"""
)

# No ARGV. The newest scheduled tick, or false.
LATEST = (
    _LIBRARY
    + """
for _, tick in ipairs(redis.call('ZRANGE', KEYS[1], '+inf', '-inf', 'BYSCORE', 'REV')) do
  local run = read(tick)
  if run and run.origin == 'schedule' then return tick end
end
return false
"""
)

# ARGV since until most. The ticks in between, oldest first, each followed by its state and attempt.
STATES = (
    _LIBRARY
    + """
local found = {}
local ticks = redis.call(
  'ZRANGE', KEYS[1], ARGV[1], ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, tick in ipairs(ticks) do
  local run = read(tick)
  if run then
    found[#found + 1], found[#found + 2], found[#found + 3] = tick, run.state, run.attempt
  end
end
return found
"""
)

# ARGV newest (a score, as ZRANGE has it) oldest limit. The records, newest first.
HISTORY = """
local ticks = redis.call(
  'ZRANGE', KEYS[1], ARGV[1], ARGV[2], 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[3])
local found = {}
for i, tick in ipairs(ticks) do found[i] = redis.call('HGET', KEYS[2], tick) or '{}' end
return found
"""
