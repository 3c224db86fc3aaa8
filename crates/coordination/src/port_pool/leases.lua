-- Lists who holds what. Answers each owner and its entry, or {'missing'}.
if not built then return {'missing'} end
local answer = {}
for owner, entry in pairs(entries()) do
  answer[#answer + 1] = owner
  answer[#answer + 1] = entry
end
return answer
