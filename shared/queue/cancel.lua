-- CANCEL: stop one request wherever it is. Called by client.py.
-- KEYS  as names.lua, 13 settlement queue, 14 prefix of the workers' command channels
-- ARGV  2 id, 3 code, 4 reader or '', 5 life of a tombstone (ms), 6 how long state and log outlive the end (ms),
--       7 end chunk (seq 1), 8 sealed zero-cost record
-- Answers: tombstoned (no such job yet), ended, not_reader, dequeued (ended here), flagged (its worker, or whoever claims
-- it next, ends it). Idempotent; the first code wins.
local id, code = ARGV[2], ARGV[3]
local state = STATE .. id
local found = call('HMGET', state, 'status', 'reader', 'owner', 'attempt')
local status = found[1]
if not status then
  call('SET', TOMBSTONE .. id, code, 'PX', ARGV[5])
  return 'tombstoned'
elseif status == 'ended' then
  return 'ended'
elseif ARGV[4] ~= '' and found[2] ~= ARGV[4] then
  return 'not_reader'
elseif status == 'queued' and call('EXISTS', LOG .. id) == 0 then
  leave_queue(id)
  call('DEL', JOB .. id)
  call('XADD', LOG .. id, '1-0', 'c', ARGV[7])
  call('XADD', KEYS[13], '*', 'f', ARGV[8])
  call('HSET', state, 'status', 'ended')
  call('PEXPIRE', state, ARGV[6])
  call('PEXPIRE', LOG .. id, ARGV[6])
  call('PUBLISH', CHANNEL .. id, ARGV[7])
  return 'dequeued'
end
call('HSETNX', state, 'cancel', code)
if status == 'queued' then
  call('ZADD', WAITING, clock_ms(), MEMBER .. id) -- the next reap closes it, should no worker claim it before
else
  local message = cmsgpack.pack({ id, tonumber(found[4]), call('HGET', state, 'cancel') })
  call('PUBLISH', KEYS[14] .. found[3], message)
end
return 'flagged'
