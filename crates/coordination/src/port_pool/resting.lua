-- Lists what rests. Answers kind, port, ms when the rest is over and `reason,since` of each port, or {'missing'}.
if not built() then return {'missing'} end
local answer, rests = {}, {}
local reasons = redis.call('HGETALL', index .. 'rests')
for at = 1, #reasons, 2 do rests[reasons[at]] = reasons[at + 1] end
for _, kind in ipairs(kinds) do
  local scored = redis.call('ZRANGE', index .. 'resting:' .. kind, 0, -1, 'WITHSCORES')
  for at = 1, #scored, 2 do
    answer[#answer + 1] = kind
    answer[#answer + 1] = scored[at]
    answer[#answer + 1] = scored[at + 1]
    answer[#answer + 1] = rests[kind .. ':' .. scored[at]] or 'returned,0'
  end
end
return answer
