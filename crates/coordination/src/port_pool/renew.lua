-- Renews sets of ports. ARGV[3]: ms to live, then owner, adb, webrtc, scrcpy of each set.
-- Answers one 1 or 0 for each set, or {-1} when there is no index.
if not built then return {-1} end
local ttl = tonumber(ARGV[3])
local answers, renewed = {}, {}
for at = 4, #ARGV, 4 do
  local owner, held, keys = ARGV[at], true, {}
  for i, kind in ipairs(kinds) do keys[i] = lease_key(kind, ARGV[at + i]) end
  local holders = redis.call('MGET', unpack(keys))
  local entry, ports, since = redis.call('HGET', KEYS[1], '=' .. owner), {}
  if entry then ports, since = ports_of(entry) end
  for i = 1, 3 do
    -- A lease that ran out but was not swept is still nobody else's.
    if (holders[i] or owner) ~= owner or ports[i] ~= ARGV[at + i] then held = false end
  end
  if held then
    for i = 1, 3 do
      if holders[i] then redis.call('PEXPIRE', keys[i], ttl) else redis.call('SET', keys[i], owner, 'PX', ttl) end
    end
    renewed[#renewed + 1] = '=' .. owner
    renewed[#renewed + 1] = entry_of(ports, since, now + ttl)
  end
  answers[#answers + 1] = held and 1 or 0
end
for at = 1, #renewed, 1000 do
  redis.call('HSET', KEYS[1], unpack(renewed, at, math.min(at + 999, #renewed)))
end
return answers
