-- GCRA on the server's clock, for many subjects at once and several requests of each.
-- KEYS: theoretical arrival times, µs. ARGV, for each key: burst, µs per token, requests.
-- Answers, for each key: how many of them may pass, µs until one more can, tokens left, µs until the bucket is full.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local burst, step, wanted = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local full = now + burst * step
  -- What lies further ahead than a full burst was written by a clock that has gone back, or for a larger limit.
  local old = math.min(math.max(tonumber(redis.call('GET', key) or now), now), full)
  local room = math.floor((full - old) / step)
  local granted = math.min(wanted, room)
  local new = old + granted * step
  if granted > 0 then redis.call('SET', key, string.format('%.0f', new), 'PX', math.ceil((new - now) / 1000)) end
  answers[4 * i - 3], answers[4 * i - 2] = granted, math.max(new + step - full, 0)
  answers[4 * i - 1], answers[4 * i] = room - granted, new - now
end
return answers
