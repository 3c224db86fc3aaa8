-- Counts ports. Answers leased, free and resting of each kind in turn, or {-1} when there is no index.
if not built() then return {-1} end
local answer, held = {}, redis.call('HLEN', base .. 'sets')
for _, kind in ipairs(kinds) do
  answer[#answer + 1] = held
  answer[#answer + 1] = redis.call('ZCARD', base .. 'free:' .. kind)
  answer[#answer + 1] = redis.call('ZCARD', base .. 'resting:' .. kind)
end
return answer
