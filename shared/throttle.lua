-- THROTTLE: count one try of each caller and tell whether it is one too many. Called by shared/throttle.py.
-- KEYS  the callers' counters, in the order in which they are asked
-- ARGV  1 window (ms), then the most tries in a window of each counter
-- Answers 0, or the ms until the first counter that is full begins anew; the counters behind it are not touched, so
-- that whoever is stopped by its address cannot use up the tries of an e-mail address.
for i, counter in ipairs(KEYS) do
  if redis.call('INCR', counter) == 1 then
    redis.call('PEXPIRE', counter, ARGV[1])
  end
  if tonumber(redis.call('GET', counter)) > tonumber(ARGV[i + 1]) then
    return math.max(1, redis.call('PTTL', counter))
  end
end
return 0
