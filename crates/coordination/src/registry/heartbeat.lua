-- Renews all memberships of one process and clears away what is long dead. KEYS: entries, epoch.
-- ARGV: what slot keys begin with, ms to live, new epoch, channel of the news, 1 where there are some, then service:slot,
-- owner, entry of each membership.
-- Answers one number for each: 1 renewed, 2 taken again after Redis lost it, 0 another has the slot.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[3], 'NX')
local answers = {}
local news = ARGV[5] == '1'
for at = 6, #ARGV, 3 do
  local key = ARGV[1] .. ARGV[at]
  local holder = redis.call('GET', key)
  if holder and holder ~= ARGV[at + 1] then
    answers[#answers + 1] = 0
  else
    redis.call('SET', key, ARGV[at + 1], 'PX', ARGV[2])
    redis.call('HSET', KEYS[1], ARGV[at], now .. '|' .. ARGV[at + 2])
    answers[#answers + 1] = holder and 1 or 2
    news = news or not holder
  end
end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if redis.call('EXISTS', ARGV[1] .. field) == 0 then
    redis.call('HDEL', KEYS[1], field)
    news = true
  end
end
if news then redis.pcall('PUBLISH', ARGV[4], 'changed') end
return answers
