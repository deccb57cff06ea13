-- CLAIM: up to `most` jobs of one model for one worker. Called by claimer.py.
-- KEYS  as names.lua, 13 fair interactive, 14 fair batch
-- ARGV  2 owner, 3 most, 4 lease_ms, 5 run_ms, 6 aged_ms, then the ids of the suspects that the worker still holds
-- Answers: whether more could be claimed at once, whether suspects wait, ids of held suspects that are cleared, rows.
-- Order: one suspect, one aged batch job, interactive by tag, batch by tag. A held suspect is cleared once it made a token
-- in this attempt, but only after its first death: a job that dies twice runs alone among suspects until its end.
local owner, room, lease_ms, run_ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = clock_ms()
local member_length = #MEMBER
local rows, cleared, held = {}, {}, 0

for i = 7, #ARGV do
  local found = call('HMGET', STATE .. ARGV[i], 'owner', 'claimed_seq', 'deaths')
  if found[1] == owner and tonumber(found[3]) == 1 and call('XLEN', LOG .. ARGV[i]) > tonumber(found[2]) then
    call('HSET', STATE .. ARGV[i], 'suspect', '0')
    cleared[#cleared + 1] = ARGV[i]
  else
    held = held + 1
  end
end

local function accept(member)
  local id = string.sub(member, member_length + 1)
  local job = read(id)
  call('ZREM', WAITING, member)
  if not job or job.status ~= 'queued' then
    return nil
  end
  local close = closed_by(id, job, now)
  if not close and job.attempt == 0 and now >= job.queue_deadline then
    close = 'model_unavailable'
  end
  rows[#rows + 1] = take(id, job, close, owner, now, lease_ms, run_ms)
  room = room - 1
  return close
end

if held == 0 then
  local suspect = call('ZPOPMIN', SUSPECTS)[1]
  local before = #rows
  if suspect and not accept(suspect) and #rows > before then
    held = 1
  end
end
local oldest = room > 0 and call('ZRANGE', BATCH, 0, 0)[1]
if oldest then
  local queued_ms = call('HGET', STATE .. string.sub(oldest, member_length + 1), 'queued_ms')
  if not queued_ms or now - queued_ms >= tonumber(ARGV[6]) then
    call('ZREM', BATCH, oldest)
    accept(oldest)
  end
end
for lane = 1, 2 do
  local tag
  while room > 0 do
    local popped = call('ZPOPMIN', KEYS[lane], room)
    if #popped == 0 then
      break
    end
    for i = 1, #popped, 2 do
      accept(popped[i])
    end
    tag = tonumber(popped[#popped])
  end
  if tag and tag > tonumber(call('HGET', KEYS[12 + lane], 'virtual') or 0) then
    call('HSET', KEYS[12 + lane], 'virtual', tag)
  end
end

local lanes_left = call('ZCARD', INTERACTIVE) + call('ZCARD', BATCH)
local suspects_left = call('ZCARD', SUSPECTS)
if lanes_left + suspects_left == 0 then
  call('DEL', WAKE)
elseif #rows > 0 then
  wake()
end
local more = lanes_left > 0 or (suspects_left > 0 and held == 0)
return { more and 1 or 0, suspects_left > 0 and 1 or 0, cleared, rows }
