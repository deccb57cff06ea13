-- REAP: jobs of one model whose lease ran out or whose patience is over. Called by reaper.py.
-- KEYS  as names.lua
-- ARGV  2 owner, 3 most of each kind, 4 lease_ms, 5 run_ms, 6 least wait in the queue (ms), 7 code of an overdue job
-- Answers: how many went back to the queue, rows that the caller must close under its own fence.
-- An expired lease is a death. A second death as a suspect closes the job: it ended two workers while it ran alone.
local owner, most, lease_ms, run_ms = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = clock_ms()
local member_length = #MEMBER
local requeued, rows = 0, {}

for _, member in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, most)) do
  local id = string.sub(member, member_length + 1)
  local job = read(id)
  if not job or job.status ~= 'claimed' then
    call('ZREM', LEASES, member)
  else
    local close = closed_by(id, job, now)
    job.deaths = job.deaths + 1
    if not close and call('HGET', STATE .. id, 'suspect') == '1' then
      close = 'request_quarantined'
    end
    if close then
      call('HSET', STATE .. id, 'deaths', job.deaths)
      rows[#rows + 1] = take(id, job, close, owner, now, lease_ms, run_ms)
      if close == 'request_quarantined' then
        call('HSET', STATE .. id, 'suspect', '1')
      end
    else
      requeue(id, job.deaths, now, tonumber(ARGV[6]))
      requeued = requeued + 1
    end
  end
end

for _, member in ipairs(call('ZRANGEBYSCORE', WAITING, '-inf', now, 'LIMIT', 0, most)) do
  local id = string.sub(member, member_length + 1)
  local job = read(id)
  leave_queue(id)
  if job and job.status == 'queued' then
    local close = closed_by(id, job, now) or (job.seq > 0 and 'worker_lost') or ARGV[7]
    rows[#rows + 1] = take(id, job, close, owner, now, lease_ms, run_ms)
  end
end

if requeued > 0 then
  wake()
end
return { requeued, rows }
