-- REQUEUE: what release.lua and reap.lua share, put in front of both by scripts.py.
-- Puts a claimed job back to the front of its lane, or among the suspects once its worker has died. It may wait as long
-- as its patience allows, at least `wait_ms`.
local QUEUES = { interactive = INTERACTIVE, batch = BATCH }

local function requeue(id, deaths, now, wait_ms)
  local state, member = STATE .. id, MEMBER .. id
  local found = call('HMGET', state, 'lane', 'tag', 'queued_ms', 'queue_deadline_ms')
  call('HSET', state, 'status', 'queued', 'owner', '', 'deaths', deaths, 'suspect', '0')
  call('ZREM', LEASES, member)
  if deaths > 0 then
    call('ZADD', SUSPECTS, found[3], member)
  else
    local queue = QUEUES[found[1]]
    local first = call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]
    call('ZADD', queue, math.min(tonumber(found[2]), tonumber(first or found[2])), member)
  end
  call('ZADD', WAITING, math.max(tonumber(found[4]), now + wait_ms), member)
end
