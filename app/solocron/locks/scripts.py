"""The Lua scripts: each decides atomically on one lock and its companion keys.

They run on Redis 6.2 and later (6.2 has no SET with NX and GET together). A token is
`host:pid:uuid:tick`; a lock in any other form belongs to an older server and is honoured for its
whole TTL. Every key set here has a TTL. `opens` is the time by this Redis's clock (UTC epoch ms)
before which a tick may be neither claimed nor settled.

An older server leaves no trace of the ticks it ran. While there are any, a lock may be *reserved*:
it is kept between the runs as well, by a token that is nobody's, and a tick is run here only if no
older server could get the lock from long enough before it on.
"""

from __future__ import annotations

# KEYS lock alive settled paused older reserved; ARGV token ttl_ms lease_ms tick (-1: a lock without
# a tick) opens keep_ms since: the tick is run here only if the lock was reserved by then (UTC epoch
# ms, by this Redis's clock; '': even if not). The last element of every answer is the time here.
#
# A tick whose claim met an older server's lock is that server's. If the lock is gone before its TTL
# is over, which is as long as the note of it lives, it was freed: the tick is done.
CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner = redis.call('GET', KEYS[1])
local last = tonumber(ARGV[4]) >= 0 and redis.call('GET', KEYS[3])
local ours = owner and string.match(owner, '^.+:%d+:%x+:%-?%d+$')
if owner ~= ARGV[1] then
  if tonumber(ARGV[4]) >= 0 then
    if now < tonumber(ARGV[5]) then return {'early', '', 0, now} end
    local older = not owner and redis.call('GET', KEYS[5])
    if older and (not last or tonumber(last) < tonumber(older)) then
      redis.call('SET', KEYS[3], older, 'PX', ARGV[6])
      last = older
    end
    if last and tonumber(last) >= tonumber(ARGV[4]) then return {'done', last, 0, now} end
    if redis.call('EXISTS', KEYS[4]) == 1 then return {'paused', '', 0, now} end
  end
  if owner then
    local left = redis.call('PTTL', KEYS[1])
    if not ours and tonumber(ARGV[4]) >= 0 and left > 1 then
      redis.call('SET', KEYS[5], ARGV[4], 'PX', left - 1)
    end
    if not ours or redis.call('EXISTS', KEYS[2]) == 1 then
      return {'held', string.sub(owner, 1, 300), left, now}
    end
  end
  local since = ours and redis.call('GET', KEYS[6])
  if tonumber(ARGV[4]) >= 0 and ARGV[7] ~= ''
      and not (since and tonumber(since) <= tonumber(ARGV[7])) then
    redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[6])
    return {'held', 'an older server, if any', 0, now}
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
if not ours then redis.call('DEL', KEYS[6]) end -- not before: once it wrote, a script is never OOM
local from = owner and owner ~= ARGV[1] and owner ~= 'reserved:0:0:-1' and string.sub(owner, 1, 300)
return {'granted', from or '', last or -1, now}
"""

# KEYS lock alive settled reserved; ARGV token tick covers keep_ms opens. `tick` was run (-1: it is
# only released); the ticks after it up to `covers` were skipped, which only the lock's owner may
# say: a process that slept past its lease must not settle what the next owner runs. `opens` is that
# of `covers`: a clock set ahead while the run went on has skipped nothing. A reserved lock stays
# reserved.
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
local left = redis.call('PTTL', KEYS[4])
if left <= 0 then return redis.call('DEL', KEYS[1], KEYS[2]) > 0 and 1 or 0 end
redis.call('SET', KEYS[1], 'reserved:0:0:-1', 'PX', left)
redis.call('DEL', KEYS[2])
return 1
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

# KEYS lock reserved settled, per job; ARGV last next tick, per job, then margin_ms reserved_ms
# keep_ms. Reserves each lock for `reserved_ms` more; one that was not, only if it is free and
# neither the `last` nor the `next` tick (UTC epoch ms) is within `margin_ms`: an older server may
# yet run it. The last one, which servers call `tick`, is then settled: it and all before were the
# older servers'. Says per job whether it is reserved.
RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local margin, px, keep = tonumber(ARGV[#ARGV - 2]), ARGV[#ARGV - 1], ARGV[#ARGV]
local answers = {}
for i = 1, #KEYS / 3 do
  local lock, reserved, settled = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local before, after, tick = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local owner, last = redis.call('GET', lock), redis.call('GET', settled)
  local nobody = owner == 'reserved:0:0:-1'
  if not (owner and string.match(owner, '^.+:%d+:%x+:%-?%d+$')) then redis.call('DEL', reserved) end
  if redis.call('PEXPIRE', reserved, px) == 1 then
    if nobody then redis.call('PEXPIRE', lock, px) end
    answers[i] = 1
  elseif (not owner or nobody) and now - before > margin and after - now > margin then
    redis.call('SET', lock, 'reserved:0:0:-1', 'PX', px)
    redis.call('SET', reserved, string.format('%.0f', now), 'PX', px)
    if not last or tonumber(last) < tonumber(tick) then
      redis.call('SET', settled, tick, 'PX', keep)
    end
    answers[i] = 1
  else
    answers[i] = 0
  end
end
return answers
"""

ALL = (CLAIM, SETTLE, RENEW, SURVEY, RESERVE)
