-- GCRA on the server's clock. KEYS[1]: theoretical arrival time, µs. ARGV: burst, µs per token, cost.
-- Answers: allowed, µs until a retry can pass, tokens left, µs until the bucket is full.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local burst, step, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
-- What lies further ahead than a full burst was written by a clock that has gone back, or for a larger limit.
local old = math.min(math.max(tonumber(redis.call('GET', KEYS[1]) or now), now), now + burst * step)
local new = old + cost * step
if new - now > burst * step then
  return {0, new - now - burst * step, math.floor((now + burst * step - old) / step), old - now}
end
redis.call('SET', KEYS[1], string.format('%.0f', new), 'PX', math.ceil((new - now) / 1000))
return {1, 0, math.floor((now + burst * step - new) / step), new - now}
