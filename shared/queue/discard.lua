-- DISCARD: a claimed job that does not carry our seal: kept as a dead letter, never run. Called by claims.py.
-- KEYS  as names.lua, 13 dead letters
-- ARGV  2 owner, 3 id, 4 attempt, 5 reason, 6 the bytes, 7 end chunk, 8 its seq, 9 life of the log (ms), 10 most letters
-- Answers 1 if discarded, 0 if the fence was lost. The state goes, so that the janitor closes the reservation for free.
local id = ARGV[3]
local found = call('HMGET', STATE .. id, 'status', 'owner', 'attempt')
if found[1] ~= 'claimed' or found[2] ~= ARGV[2] or found[3] ~= ARGV[4] then
  return 0
end
call('XADD', KEYS[13], 'MAXLEN', '~', ARGV[10], '*', 'f', ARGV[6], 'kind', 'job', 'reason', ARGV[5], 'of', id)
call('ZREM', LEASES, MEMBER .. id)
call('DEL', JOB .. id, STATE .. id)
call('XADD', LOG .. id, ARGV[8] .. '-0', 'c', ARGV[7])
call('PEXPIRE', LOG .. id, ARGV[9])
call('PUBLISH', CHANNEL .. id, ARGV[7])
return 1
