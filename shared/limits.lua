-- LIMITS: what keys and accounts may do: slots, requests and tokens of many operations, in order. Called by limits.py.
-- KEYS  1 prefix of slots, 2 of requests, 3 of tokens per minute, 4 this caller's last call
-- ARGV  1 lease (ms), 2 life of what is unused (ms), 3 number of a call that counts or '', 4 msgpack [[operation, …], …]
--       1 acquire: request id, tokens, then per holder: name, requests, tokens per minute, slots; 0: no such limit
--       2 renew, 3 release: request id, 0, holders as above; only slots are looked at
--       4 give back: '', tokens, then per holder: name, 0, tokens per minute, the mark of its acquire
-- Answers per acquire that counts [verdict, wait (ms), limit, left and reset (ms) of requests and of tokens, marks…], per
-- other operation 1 or 0. Verdicts: 1 granted; else nothing was taken: 0 no slot, -1 requests, -2 tokens, -3 more tokens
-- than the limit itself. Slots are idempotent by request id, all else by the number of the call: a call that comes
-- again, since its answer was lost, is answered as before.
-- GCRA: a limit of N per minute is a bucket of N that starts empty and drains N per minute. Level and drain are whole
-- numbers of 1/60000: N per millisecond. What is given back late must not be given twice, by draining and by hand. So a
-- bucket keeps how far it had drained at its acquires, as (mark, level) where no later level is as low: of what is given
-- back counts only what never drained since its own acquire. The level is then what it would be had the acquire asked
-- for less.
local call = redis.call
local UNIT, LOWS_MOST, NEVER = 60000, 128, 2 ^ 50
local SLOTS, REQUESTS, TOKENS = KEYS[1], KEYS[2], KEYS[3]
local lease, life, number = tonumber(ARGV[1]), ARGV[2], ARGV[3]
if number ~= '' then
  local last = call('GET', KEYS[4])
  last = last and cmsgpack.unpack(last)
  if last and last[1] == number then
    return last[2]
  end
end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local buckets, limits = {}, {}

-- A bucket is [level, when (ms), mark, low, mark, low, …].
local function open(name, limit)
  local bucket = buckets[name]
  if not bucket then
    local kept = call('GET', name)
    bucket = kept and cmsgpack.unpack(kept) or { 0, now }
    bucket[1] = math.max(0, bucket[1] - math.max(0, now - bucket[2]) * limit)
    bucket[2] = now
    buckets[name], limits[name] = bucket, limit
  end
  return bucket
end

-- Fills a bucket and returns the mark of this acquire.
local function fill(bucket, amount)
  local count = #bucket
  local mark = math.max(now_us, count > 2 and bucket[count - 1] + 1 or 0)
  while count > 2 and bucket[count] >= bucket[1] do
    bucket[count], bucket[count - 1] = nil, nil
    count = count - 2
  end
  bucket[count + 1], bucket[count + 2] = mark, bucket[1]
  if count + 2 > LOWS_MOST then -- the two oldest become one: too little may be given back, never too much
    local low = math.min(bucket[4], bucket[6])
    table.remove(bucket, 3)
    table.remove(bucket, 3)
    bucket[4] = low
  end
  bucket[1] = bucket[1] + amount
  return mark
end

local function give_back(bucket, amount, mark)
  local back = math.min(amount, bucket[1])
  for at = 3, #bucket, 2 do
    if bucket[at] > mark then
      back = math.min(back, bucket[at + 1])
    end
  end
  bucket[1] = bucket[1] - back
  for at = 3, #bucket, 2 do
    if bucket[at] > mark then
      bucket[at + 1] = bucket[at + 1] - back
    end
  end
end

local function has_slot(holder, most, id)
  local slots = SLOTS .. holder
  call('ZREMRANGEBYSCORE', slots, '-inf', now)
  return call('ZCARD', slots) < most or call('ZSCORE', slots, id)
end

-- Tells how long `amount` must wait for this bucket, 0 if it need not.
local function wait_for(bucket, limit, amount)
  return math.max(0, math.ceil((bucket[1] + amount * UNIT) / limit) - UNIT)
end

local function decide(operation)
  local verdict, wait, counts = 1, 0, false
  for at = 4, #operation, 4 do
    local holder, requests, tokens, slots = unpack(operation, at, at + 3)
    counts = counts or requests > 0 or tokens > 0
    local waits = {
      [-1] = requests > 0 and wait_for(open(REQUESTS .. holder, requests), requests, 1) or 0,
      [-2] = tokens > 0 and wait_for(open(TOKENS .. holder, tokens), tokens, operation[3]) or 0,
      [-3] = tokens > 0 and operation[3] > tokens and NEVER or 0,
    }
    for by = -1, -3, -1 do
      if waits[by] > wait then
        verdict, wait = by, waits[by]
      end
    end
    if verdict == 1 and slots > 0 and not has_slot(holder, slots, operation[2]) then
      verdict = 0
    end
  end
  return verdict, wait, counts
end

local function tell(answer, at, bucket, limit)
  local left = math.max(0, math.floor(limit - bucket[1] / UNIT))
  if answer[at] == 0 or left < answer[at + 1] then
    answer[at], answer[at + 1], answer[at + 2] = limit, left, math.ceil(bucket[1] / limit)
  end
end

local function acquire(operation)
  local verdict, wait, counts = decide(operation)
  local answer = { verdict, wait, 0, 0, 0, 0, 0, 0 }
  for at = 4, #operation, 4 do
    local holder, requests, tokens, slots = unpack(operation, at, at + 3)
    if verdict == 1 and slots > 0 then
      call('ZADD', SLOTS .. holder, now + lease, operation[2])
      call('PEXPIRE', SLOTS .. holder, life)
    end
    if requests > 0 then
      local bucket = open(REQUESTS .. holder, requests)
      if verdict == 1 then
        bucket[1] = bucket[1] + UNIT
      end
      tell(answer, 3, bucket, requests)
    end
    if tokens > 0 then
      local bucket = open(TOKENS .. holder, tokens)
      if verdict == 1 then
        answer[#answer + 1] = fill(bucket, operation[3] * UNIT)
      end
      tell(answer, 6, bucket, tokens)
    end
  end
  return counts and answer or verdict
end

local answers = {}
for i, operation in ipairs(cmsgpack.unpack(ARGV[4])) do
  local what = operation[1]
  answers[i] = 1
  if what == 1 then
    answers[i] = acquire(operation)
  else
    for at = 4, #operation, 4 do
      local holder = operation[at]
      if what == 4 then
        give_back(open(TOKENS .. holder, operation[at + 2]), operation[3] * UNIT, operation[at + 3])
      elseif operation[at + 3] > 0 and what == 3 then
        call('ZREM', SLOTS .. holder, operation[2])
      elseif operation[at + 3] > 0 then
        call('ZADD', SLOTS .. holder, now + lease, operation[2])
        call('PEXPIRE', SLOTS .. holder, life)
      end
    end
  end
end
for name, bucket in pairs(buckets) do
  call('SET', name, cmsgpack.pack(bucket), 'PX', math.ceil(bucket[1] / limits[name]) + 1000)
end
if number ~= '' then
  call('SET', KEYS[4], cmsgpack.pack({ number, answers }), 'PX', life)
end
return answers
