-- FENCE: take a request away from everybody, so that the caller alone may close it. Called by client.py for the janitor.
-- KEYS  as names.lua
-- ARGV  2 id, 3 the caller's owner, 4 life of the tombstone (ms)
-- Answers: 1 if there is state, the status before, last seq, the attempt that the caller now holds. An ended request is
-- left as it is. May be repeated: each time raises the attempt.
local id = ARGV[2]
local state = STATE .. id
call('SET', TOMBSTONE .. id, 'request_cancelled', 'PX', ARGV[4])
local found = call('HMGET', state, 'status', 'attempt')
if found[1] == 'ended' then
  return { 1, 'ended', call('XLEN', LOG .. id), tonumber(found[2]) }
end
leave_queue(id)
call('ZREM', LEASES, MEMBER .. id)
call('DEL', JOB .. id)
if not found[1] then
  return { 0, '', 0, 0 }
end
local attempt = found[2] + 1
call('HSET', state, 'status', 'claimed', 'owner', ARGV[3], 'attempt', attempt)
return { 1, found[1], call('XLEN', LOG .. id), attempt }
