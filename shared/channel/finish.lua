-- FINISH: the ends of many requests of one model by one owner. Called by shared/channel/writer.py.
-- KEYS  1 state prefix, 2 log prefix, 3 channel prefix, 4 job prefix, 5 settlement queue, 6 leases
-- ARGV  1 owner, 2 how long state and log outlive the end (ms), 3 job id prefix,
--       4 msgpack [id, attempt, seq, chunk bytes, record bytes, …], 5 the chunks and records, in that order
-- Answers only what was not finished, as append.lua does. Idempotent: the same fence is answered `already`.
-- End marker and settlement record are written together: an end that a reader sees will be charged.
local owner, keep = ARGV[1], ARGV[2]
local entries, blob = cmsgpack.unpack(ARGV[4]), ARGV[5]
local call, sub = redis.call, string.sub
local refused, count, from = {}, 0, 1
for i = 1, #entries, 5 do
  local id, seq = entries[i], entries[i + 2]
  local middle = from + entries[i + 3]
  local to = middle + entries[i + 4]
  local state, log = KEYS[1] .. id, KEYS[2] .. id
  local found, tip = call('HMGET', state, 'status', 'attempt', 'owner'), redis.pcall('XLEN', log)
  local status = found[1]
  local verdict
  if not status or type(tip) ~= 'number' then
    verdict, tip = 4, 0
  elseif found[3] ~= owner or tonumber(found[2]) ~= entries[i + 1] then
    verdict = 2
  elseif status == 'ended' then
    verdict = 1
  elseif status ~= 'claimed' then
    verdict = 2
  elseif seq ~= tip + 1 then
    verdict = 3
  else
    local chunk = sub(blob, from, middle - 1)
    local added = redis.pcall('XADD', log, seq .. '-0', 'c', chunk)
    if type(added) ~= 'table' then
      call('XADD', KEYS[5], '*', 'f', sub(blob, middle, to - 1))
      call('HSET', state, 'status', 'ended')
      call('ZREM', KEYS[6], ARGV[3] .. id)
      call('DEL', KEYS[4] .. id)
      call('PEXPIRE', state, keep)
      call('PEXPIRE', log, keep)
      call('PUBLISH', KEYS[3] .. id, chunk)
    elseif string.find(added.err, 'OOM', 1, true) then
      return added
    else
      verdict = 4 -- as in append.lua
    end
  end
  if verdict then
    refused[count + 1], refused[count + 2], refused[count + 3] = (i - 1) / 5, verdict, tip
    count = count + 3
  end
  from = to
end
return refused
