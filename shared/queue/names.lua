-- NAMES: put in front of every script of this folder by scripts.py; gives KEYS (made by names.py) and ARGV[1] their names.
local call = redis.call
local INTERACTIVE, BATCH, SUSPECTS, WAITING, LEASES, WAKE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local STATE, JOB, TOMBSTONE, REVOKED, LOG, CHANNEL = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local MEMBER = ARGV[1] -- MEMBER .. request id is the job id, a member of the zsets

local function clock_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function wake()
  if call('LLEN', WAKE) == 0 then
    call('LPUSH', WAKE, '1')
  end
end

local function leave_queue(id)
  call('ZREM', INTERACTIVE, MEMBER .. id)
  call('ZREM', BATCH, MEMBER .. id)
  call('ZREM', SUSPECTS, MEMBER .. id)
  call('ZREM', WAITING, MEMBER .. id)
end
