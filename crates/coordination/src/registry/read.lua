-- Reads the registry and writes nothing. KEYS: entries, epoch. Answers the time in ms, the epoch ('' where it is lost),
-- then each field and its value.
local time = redis.call('TIME')
local answer = {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), redis.call('GET', KEYS[2]) or ''}
for _, each in ipairs(redis.call('HGETALL', KEYS[1])) do answer[#answer + 1] = each end
return answer
