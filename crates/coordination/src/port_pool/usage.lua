-- Counts ports. Answers leased, free and resting of each kind in turn, or {-1} when there is no index.
if not built() then return {-1} end
local answer, held = {}, count_held()
for i, kind in ipairs(kinds) do
  answer[#answer + 1] = held[i]
  answer[#answer + 1] = redis.call('ZCARD', index .. 'free:' .. kind)
  answer[#answer + 1] = redis.call('ZCARD', index .. 'resting:' .. kind)
end
return answer
