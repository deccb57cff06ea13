-- RELEASE (hand-over): a live worker gives claimed jobs of one model back; no death is counted. Called by keeper.py.
-- KEYS  as names.lua
-- ARGV  2 owner, 3 least wait in the queue (ms), then per job: id, attempt
-- Answers per job: released, fenced, gone. Idempotent: a job that went back is `fenced`.
local now, verdicts, woken = clock_ms(), {}, false
for i = 4, #ARGV, 2 do
  local found = call('HMGET', STATE .. ARGV[i], 'status', 'owner', 'attempt', 'deaths')
  local verdict = 'released'
  if not found[1] then
    verdict = 'gone'
  elseif found[1] ~= 'claimed' or found[2] ~= ARGV[2] or found[3] ~= ARGV[i + 1] then
    verdict = 'fenced'
  else
    requeue(ARGV[i], tonumber(found[4]), now, tonumber(ARGV[3]))
    woken = true
  end
  verdicts[#verdicts + 1] = verdict
end
if woken then
  wake()
end
return verdicts
