-- CLAIM: up to `most` jobs of one model for one worker. Called by claimer.py.
-- KEYS  as names.lua, 13 fair interactive, 14 fair batch
-- ARGV  2 owner, 3 most, 4 lease_ms, 5 run_ms, 6 aged_ms, 7 slots that are free beyond the reserve (batch may have them),
--       then the ids of the suspects that the worker still holds
-- Answers: 1 if more could be claimed at once, 2 if all that waits is batch jobs without a spare slot, else 0; whether
-- suspects wait; ids of held suspects that are cleared; rows.
-- Order: one suspect, one aged batch job, interactive by tag, batch by tag. A held suspect is cleared once it made a token
-- in this attempt, but only after its first death: a job that dies twice runs alone among suspects until its end.
-- An aged job may have a reserved slot, but no more than one in AGED_EVERY: a backlog that has aged as a whole would
-- else be served before all that is interactive.
local AGED_EVERY = 8 -- interactive jobs between two aged ones, while both wait
local owner, room, lease_ms, run_ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = clock_ms()
local member_length = #MEMBER
local rows, cleared, held = {}, {}, 0

for i = 8, #ARGV do
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

local function advance(fair, tag)
  if tag > tonumber(call('HGET', fair, 'virtual') or 0) then
    call('HSET', fair, 'virtual', tag)
  end
end

local function serve(queue, fair, spare)
  local served, tag = 0, nil
  while math.min(room, spare - #rows) > 0 do
    local popped = call('ZPOPMIN', queue, math.min(room, spare - #rows))
    if #popped == 0 then
      break
    end
    for i = 1, #popped, 2 do
      accept(popped[i])
    end
    served = served + #popped / 2
    tag = tonumber(popped[#popped])
  end
  if tag then
    advance(fair, tag)
  end
  return served
end

local oldest = room > 0 and call('ZRANGE', BATCH, 0, 0, 'WITHSCORES')
local aged = false
if oldest and oldest[1] then
  local queued_ms = call('HGET', STATE .. string.sub(oldest[1], member_length + 1), 'queued_ms')
  aged = not queued_ms or now - queued_ms >= tonumber(ARGV[6])
  if aged and tonumber(call('HGET', KEYS[14], 'since_aged') or AGED_EVERY) >= AGED_EVERY then
    call('ZREM', BATCH, oldest[1])
    accept(oldest[1])
    advance(KEYS[14], tonumber(oldest[2])) -- else new accounts of the lane would pass those that wait
    call('HSET', KEYS[14], 'since_aged', 0)
  end
end
local spare = tonumber(ARGV[7])
local served = serve(INTERACTIVE, KEYS[13], #rows + room)
if aged and served > 0 then
  call('HINCRBY', KEYS[14], 'since_aged', served)
end
serve(BATCH, KEYS[14], spare)

local interactive_left, batch_left = call('ZCARD', INTERACTIVE), call('ZCARD', BATCH)
local lanes_left = interactive_left + batch_left
local suspects_left = call('ZCARD', SUSPECTS)
if lanes_left + suspects_left == 0 then
  call('DEL', WAKE)
elseif #rows > 0 then
  wake()
end
local more = batch_left > 0 and 2 or 0
if interactive_left > 0 or (batch_left > 0 and spare > #rows) or (suspects_left > 0 and held == 0) then
  more = 1
end
return { more, suspects_left > 0 and 1 or 0, cleared, rows }
