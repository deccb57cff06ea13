-- ENQUEUE: many jobs of one model. Called by client.py.
-- KEYS  as names.lua, 13 fair interactive, 14 fair batch
-- ARGV  2 most in a lane, 3 life of the fair tags (ms), 4 how long state outlives the deadline (ms), then 11 per job:
--       id, sealed job, lane, account, key, reader, resumable, cost, reserved_ms, queue_deadline_ms, deadline_ms
-- Answers per job: queued, already, tombstoned, queue_full. Idempotent by request id.
-- Start-time fair queueing: start = max(virtual time, finish tag of the account), finish = start + cost.
local QUEUES = { interactive = INTERACTIVE, batch = BATCH }
local FAIR = { interactive = KEYS[13], batch = KEYS[14] }
local FORGET_ABOVE = 1024 -- accounts whose tags are forgotten once their lane has run empty
local most, fair_keep, keep = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now = clock_ms()
local lanes, verdicts, woken = {}, {}, false

local function open_lane(name)
  local queue, fair = QUEUES[name], FAIR[name]
  local depth = call('ZCARD', queue)
  local virtual = call('HGET', fair, 'virtual')
  if not virtual then
    virtual = call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2] or 0
    call('HSET', fair, 'virtual', virtual)
  end
  if depth == 0 and call('HLEN', fair) > FORGET_ABOVE then
    call('DEL', fair)
    call('HSET', fair, 'virtual', virtual)
  end
  call('PEXPIRE', fair, fair_keep)
  lanes[name] = { queue = queue, fair = fair, depth = depth, virtual = tonumber(virtual), finish = {} }
  return lanes[name]
end

for i = 5, #ARGV, 11 do
  local id = ARGV[i]
  local state, verdict = STATE .. id, 'queued'
  local lane = lanes[ARGV[i + 2]] or open_lane(ARGV[i + 2])
  if call('EXISTS', state, TOMBSTONE .. id) > 0 then
    verdict = call('EXISTS', TOMBSTONE .. id) == 1 and 'tombstoned' or 'already'
  elseif lane.depth >= most then
    verdict = 'queue_full'
  else
    local account, deadline = ARGV[i + 3], ARGV[i + 10]
    local finish = lane.finish[account] or tonumber(call('HGET', lane.fair, account) or 0)
    local start = math.max(lane.virtual, finish)
    lane.finish[account] = start + ARGV[i + 7]
    call('HSET', state, 'status', 'queued', 'attempt', 0, 'owner', '', 'deaths', 0,
      'reader', ARGV[i + 5], 'resumable', ARGV[i + 6], 'lane', ARGV[i + 2], 'account', account, 'key', ARGV[i + 4],
      'reserved_ms', ARGV[i + 8], 'queue_deadline_ms', ARGV[i + 9], 'deadline_ms', deadline, 'queued_ms', now,
      'tag', start)
    call('PEXPIREAT', state, deadline + keep)
    call('SET', JOB .. id, ARGV[i + 1], 'PXAT', deadline + keep)
    call('ZADD', lane.queue, start, MEMBER .. id)
    call('ZADD', WAITING, ARGV[i + 9], MEMBER .. id)
    lane.depth = lane.depth + 1
    woken = true
  end
  verdicts[#verdicts + 1] = verdict
end
for _, lane in pairs(lanes) do
  for account, finish in pairs(lane.finish) do
    call('HSET', lane.fair, account, finish)
  end
end
if woken then
  wake()
end
return verdicts
