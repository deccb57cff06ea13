-- APPEND: many chunks of one model by one owner, in order. Called by shared/channel/writer.py.
-- KEYS  1 state prefix, 2 log prefix, 3 channel prefix (a request id behind each makes the name; one hash tag)
-- ARGV  1 owner, 2 how long the log outlives the deadline (ms), 3 msgpack [id, attempt, seq, chunk bytes, …], 4 the chunks
-- Answers only what was not appended, flat: position from 0, verdict (1 already, 2 fenced, 3 gap, 4 gone), last seq.
-- Idempotent: a chunk at or below the last seq of the same fence is `already`. The last seq is the length of the log:
-- seqs begin at 1 and have no gaps, and nothing is ever taken out of a log.
local owner = ARGV[1]
local entries, blob = cmsgpack.unpack(ARGV[3]), ARGV[4]
local call, sub = redis.call, string.sub
local refused, count, from = {}, 0, 1
for i = 1, #entries, 4 do
  local id, seq, to = entries[i], entries[i + 2], from + entries[i + 3]
  local state, log = KEYS[1] .. id, KEYS[2] .. id
  local found, tip = call('HMGET', state, 'status', 'attempt', 'owner'), redis.pcall('XLEN', log)
  local status = found[1]
  local verdict
  if not status or type(tip) ~= 'number' then
    verdict, tip = 4, 0
  elseif found[3] ~= owner or tonumber(found[2]) ~= entries[i + 1] then
    verdict = 2
  elseif seq <= tip then
    verdict = 1
  elseif status ~= 'claimed' then
    verdict = 2
  elseif seq > tip + 1 then
    verdict = 3
  else
    local chunk = sub(blob, from, to - 1)
    local added = redis.pcall('XADD', log, seq .. '-0', 'c', chunk)
    if type(added) ~= 'table' then
      if seq == 1 then
        local time = call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        call('HSET', state, 'first_token_ms', now)
        call('PEXPIREAT', log, (tonumber(call('HGET', state, 'deadline_ms')) or now) + ARGV[2])
      end
      call('PUBLISH', KEYS[3] .. id, chunk)
    elseif string.find(added.err, 'OOM', 1, true) then
      return added
    else
      verdict = 4 -- the log contradicts its state: one broken request must not stop its neighbours
    end
  end
  if verdict then
    refused[count + 1], refused[count + 2], refused[count + 3] = (i - 1) / 4, verdict, tip
    count = count + 3
  end
  from = to
end
return refused
