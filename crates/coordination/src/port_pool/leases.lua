-- Lists who holds what. Answers owner, `adb,webrtc,scrcpy,since` and ms when the lease ends of each set, or {'missing'}.
if not built() then return {'missing'} end
local sets, answer = redis.call('HGETALL', index .. 'sets'), {}
local ends = {}
local scored = redis.call('ZRANGE', index .. 'ends', 0, -1, 'WITHSCORES')
for at = 1, #scored, 2 do ends[scored[at]] = scored[at + 1] end
for at = 1, #sets, 2 do
  answer[#answer + 1] = sets[at]
  answer[#answer + 1] = sets[at + 1]
  answer[#answer + 1] = ends[sets[at]] or '0'
end
return answer
