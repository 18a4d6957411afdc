"""The Lua scripts: each decides atomically on one lock and its companion keys.

They run on Redis 6.2 and later (6.2 has no SET with NX and GET together). A token is
`host:pid:uuid:tick`; a lock in any other form belongs to an older server and is honoured for its
whole TTL. Every key set here has a TTL. `opens` is the time by this Redis's clock (UTC epoch ms)
before which a tick may be neither claimed nor settled.
"""

from __future__ import annotations

# KEYS lock alive settled paused; ARGV token ttl_ms lease_ms tick (-1: a lock without a tick) opens.
# The last element of every answer is the time here.
CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner = redis.call('GET', KEYS[1])
local last = redis.call('GET', KEYS[3])
if owner ~= ARGV[1] then
  if tonumber(ARGV[4]) >= 0 then
    if now < tonumber(ARGV[5]) then return {'early', '', 0, now} end
    if last and tonumber(last) >= tonumber(ARGV[4]) then return {'done', last, 0, now} end
    if redis.call('EXISTS', KEYS[4]) == 1 then return {'paused', '', 0, now} end
  end
  if owner then
    local ours = string.match(owner, '^.+:%d+:%x+:%-?%d+$')
    if not ours or redis.call('EXISTS', KEYS[2]) == 1 then
      return {'held', string.sub(owner, 1, 300), redis.call('PTTL', KEYS[1]), now}
    end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
local from = owner and owner ~= ARGV[1] and string.sub(owner, 1, 300) or ''
return {'granted', from, last or -1, now}
"""

# KEYS lock alive settled; ARGV token tick covers keep_ms opens. `tick` was run (-1: release without
# settling); the ticks after it up to `covers` were skipped, which only the lock's owner may say: a
# process that slept past its lease must not settle what the next owner runs. `opens` is that of
# `covers`: a clock set ahead while the run went on has skipped nothing.
SETTLE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ours = redis.call('GET', KEYS[1]) == ARGV[1]
local tick = tonumber(ARGV[2])
if ours and tick >= 0 and now >= tonumber(ARGV[5]) then tick = math.max(tick, tonumber(ARGV[3])) end
if tick >= 0 then
  local last = redis.call('GET', KEYS[3])
  if not last or tonumber(last) < tick then
    redis.call('SET', KEYS[3], string.format('%.0f', tick), 'PX', ARGV[4])
  end
end
if not ours then return 0 end
return redis.call('DEL', KEYS[1], KEYS[2]) > 0 and 1 or 0
"""

# KEYS lock alive, per lease; ARGV token ttl_ms lease_ms, per lease. Never re-creates a lock.
RENEW = """
local answers = {}
for i = 1, #KEYS / 2 do
  local lock, alive, a = KEYS[2 * i - 1], KEYS[2 * i], 3 * i - 2
  if redis.call('GET', lock) == ARGV[a] then
    redis.call('PEXPIRE', lock, ARGV[a + 1])
    redis.call('SET', alive, ARGV[a], 'PX', ARGV[a + 2])
    answers[i] = 1
  else
    answers[i] = 0
  end
end
return answers
"""

# KEYS lock alive settled paused looked, per job; ARGV look_ms. Says what each job's keys hold, then
# the time here, and lets one server in look_ms look into the ledger.
SURVEY = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i = 1, #KEYS / 5 do
  local k = 5 * i - 4
  local paused = redis.pcall('GET', KEYS[k + 3])
  if type(paused) == 'table' or paused == '' then paused = '?' end -- whatever is there
  answers[i] = {
    string.sub(redis.call('GET', KEYS[k]) or '', 1, 300), redis.call('PTTL', KEYS[k]),
    redis.call('EXISTS', KEYS[k + 1]), redis.call('GET', KEYS[k + 2]) or '',
    string.sub(paused or '', 1, 1000), redis.call('PTTL', KEYS[k + 3]),
    redis.call('SET', KEYS[k + 4], '1', 'PX', ARGV[1], 'NX') and 1 or 0,
  }
end
answers[#answers + 1] = now
return answers
"""

ALL = (CLAIM, SETTLE, RENEW, SURVEY)
