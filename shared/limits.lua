-- LIMITS: acquire, renew and release concurrency slots of many requests, in order. Called by shared/limits.py.
-- KEYS  1 prefix of the holders' slots
-- ARGV  1 lease (ms), 2 life of an unused key (ms), 3 msgpack [[operation, request id, holder, most, …], …]
--       operation 1 acquire (all holders or none), 2 renew, 3 release
-- Answers 1 or, for an acquire that found no room, 0. Idempotent by request id: who holds a slot acquires it again.
local call = redis.call
local lease, life = tonumber(ARGV[1]), ARGV[2]
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i, operation in ipairs(cmsgpack.unpack(ARGV[3])) do
  local what, id, granted = operation[1], operation[2], 1
  if what == 1 then
    for at = 3, #operation, 2 do
      local slots = KEYS[1] .. operation[at]
      call('ZREMRANGEBYSCORE', slots, '-inf', now)
      if call('ZCARD', slots) >= operation[at + 1] and not call('ZSCORE', slots, id) then
        granted = 0
        break
      end
    end
  end
  if granted == 1 then
    for at = 3, #operation, 2 do
      local slots = KEYS[1] .. operation[at]
      if what == 3 then
        call('ZREM', slots, id)
      else
        call('ZADD', slots, now + lease, id)
        call('PEXPIRE', slots, life)
      end
    end
  end
  answers[i] = granted
end
return answers
