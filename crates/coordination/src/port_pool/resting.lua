-- Lists what rests. Answers `kind:port`, ms when the rest is over and `reason,since` of each port, or {'missing'}.
if not built then return {'missing'} end
local answer, rests = {}, {}
local reasons = redis.call('HGETALL', index .. 'rests')
for at = 1, #reasons, 2 do rests[reasons[at]] = reasons[at + 1] end
local scored = redis.call('ZRANGE', index .. 'resting', 0, -1, 'WITHSCORES')
for at = 1, #scored, 2 do
  answer[#answer + 1] = scored[at]
  answer[#answer + 1] = scored[at + 1]
  answer[#answer + 1] = rests[scored[at]] or 'returned,0'
end
return answer
