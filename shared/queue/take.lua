-- TAKE: what claim.lua and reap.lua share, put in front of both by scripts.py.
-- A row tells a claim: id, sealed job, attempt, last seq, deaths, first_claim_ms, run_deadline_ms, close code or '',
-- first_token_ms or 0.
local function read(id)
  local found = call('HMGET', STATE .. id, 'status', 'attempt', 'deaths', 'key', 'cancel', 'queue_deadline_ms',
    'deadline_ms', 'first_claim_ms', 'run_deadline_ms', 'first_token_ms')
  if not found[1] then
    return nil
  end
  return {
    status = found[1], attempt = tonumber(found[2]) or 0, seq = call('XLEN', LOG .. id),
    deaths = tonumber(found[3]) or 0, key = found[4] or '', cancel = found[5], queue_deadline = tonumber(found[6]) or 0,
    deadline = tonumber(found[7]) or 0, first_claim = tonumber(found[8]), run_deadline = tonumber(found[9]),
    first_token = tonumber(found[10]) or 0,
  }
end

-- The code by which a job must be closed whoever holds it, or nil.
local function closed_by(id, job, now)
  if job.cancel then
    return job.cancel
  end
  if call('EXISTS', TOMBSTONE .. id, REVOKED .. job.key) > 0 then
    return call('EXISTS', TOMBSTONE .. id) == 1 and 'request_cancelled' or 'key_revoked'
  end
  if now >= job.deadline then
    return job.attempt > 0 and 'worker_lost' or 'model_unavailable'
  end
  return nil
end

local function take(id, job, close, owner, now, lease_ms, run_ms)
  local attempt = job.attempt + 1
  local first_claim = job.first_claim or now
  local run_deadline = job.run_deadline or now + run_ms
  local suspect = job.deaths > 0 and not close and '1' or '0'
  call('HSET', STATE .. id, 'status', 'claimed', 'attempt', attempt, 'owner', owner, 'first_claim_ms', first_claim,
    'run_deadline_ms', run_deadline, 'suspect', suspect, 'claimed_seq', job.seq)
  call('ZADD', LEASES, now + lease_ms, MEMBER .. id)
  local sealed = call('GET', JOB .. id) or ''
  return { id, sealed, attempt, job.seq, job.deaths, first_claim, run_deadline, close or '', job.first_token }
end
