-- ANNOUNCE: a worker's presence, its beat, and the load times that it measured. Called by shared/presence.py.
-- KEYS  1 presence of the worker, 2 workers, 3 load times
-- ARGV  1 owner, 2 presence, 3 its life (ms), 4 age at which a silent worker is pruned (ms), 5 life of load times (ms),
--       then model and load time in seconds, in turn
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
end
