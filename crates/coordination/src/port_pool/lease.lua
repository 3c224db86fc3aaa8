-- Leases the lowest free port of each kind, all or none. ARGV[3]: owner, ARGV[4]: ms to live.
-- Answers {'leased', adb, webrtc, scrcpy}, {'missing'} or {'exhausted', kind, leased, resting}.
if not built() then return {'missing'} end
local owner, ttl = ARGV[3], tonumber(ARGV[4])
wake(128)

local mine = redis.call('HGET', base .. 'sets', owner)
if mine then -- The same owner again: it keeps what it has.
  local ports = ports_of(mine)
  local whole = true
  for i, kind in ipairs(kinds) do
    local holder = redis.call('HGET', base .. 'holders', kind .. ':' .. ports[i])
    if holder ~= owner then whole = false end
  end
  if whole then
    for i, kind in ipairs(kinds) do hold(kind, ports[i], owner, ttl) end
    return {'leased', ports[1], ports[2], ports[3]}
  end
end

local found = {}
for i, kind in ipairs(kinds) do
  while not found[i] do
    local port = redis.call('ZRANGE', base .. 'free:' .. kind, 0, 0)[1]
    if not port then
      return {'exhausted', kind, redis.call('ZCARD', base .. 'leased:' .. kind),
        redis.call('ZCARD', base .. 'resting:' .. kind)}
    end
    local ms = redis.call('PTTL', lease_key(kind, port))
    if ms == -2 then
      found[i] = port
    else -- Leased behind the index's back: the lease is right, the index wrong.
      hold(kind, port, redis.call('GET', lease_key(kind, port)), math.max(ms, 1000))
    end
  end
end
for i, kind in ipairs(kinds) do hold(kind, found[i], owner, ttl) end
redis.call('HSET', base .. 'sets', owner, table.concat(found, ','))
return {'leased', found[1], found[2], found[3]}
