-- Renews sets of ports. ARGV[3]: ms to live, then owner, adb, webrtc, scrcpy of each set.
-- Answers one 1 or 0 for each set, or {-1} when there is no index.
if not built() then return {-1} end
local ttl = tonumber(ARGV[3])
local answers = {}
for at = 4, #ARGV, 4 do
  local owner, held = ARGV[at], true
  for i, kind in ipairs(kinds) do
    local port = ARGV[at + i]
    local holder = redis.call('GET', lease_key(kind, port))
    -- A lease that ran out but was not swept is still nobody else's.
    if not holder then holder = redis.call('HGET', base .. 'holders', kind .. ':' .. port) end
    if holder ~= owner then held = false end
  end
  if held then
    for i, kind in ipairs(kinds) do hold(kind, ARGV[at + i], owner, ttl) end
    redis.call('HSET', base .. 'sets', owner, ARGV[at + 1] .. ',' .. ARGV[at + 2] .. ',' .. ARGV[at + 3])
  end
  answers[#answers + 1] = held and 1 or 0
end
return answers
