-- BEAT: renew the leases of one owner's jobs of one model. Called by keeper.py.
-- KEYS  as names.lua
-- ARGV  2 owner, 3 lease_ms, then per job: id, attempt
-- Answers flat per job: 1 if the fence still holds, cancel code or '', current reader.
local owner, lease_end, answers = ARGV[2], clock_ms() + ARGV[3], {}
for i = 4, #ARGV, 2 do
  local found = call('HMGET', STATE .. ARGV[i], 'status', 'owner', 'attempt', 'cancel', 'reader')
  local holds = found[1] == 'claimed' and found[2] == owner and found[3] == ARGV[i + 1]
  if holds then
    call('ZADD', LEASES, lease_end, MEMBER .. ARGV[i])
  end
  -- A job that this fence has ended is not lost: its task is about to return.
  local ended = found[1] == 'ended' and found[2] == owner and found[3] == ARGV[i + 1]
  local count = #answers
  answers[count + 1] = (holds or ended) and 1 or 0
  answers[count + 2] = found[4] or ''
  answers[count + 3] = found[5] or ''
end
return answers
