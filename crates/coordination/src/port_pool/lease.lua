-- Leases the lowest free port of each kind, all or none. ARGV[3]: owner, ARGV[4]: ms to live.
-- Answers {'leased', adb, webrtc, scrcpy}, {'missing'} or {'exhausted', kind, leased, resting}.
if not built() then return {'missing'} end
local owner, ttl = ARGV[3], tonumber(ARGV[4])
-- Whatever is due comes back in the order in which it fell due. One of each kind is enough for this lease; more, so that
-- the lowest number is found and that ports come back faster than they are leased.
wake(128)

local mine = redis.call('HGET', index .. 'sets', owner)
if mine then -- The same owner again: it keeps what it has.
  local ports = ports_of(mine)
  local whole = true
  for i, kind in ipairs(kinds) do
    local holder = redis.call('GET', lease_key(kind, ports[i]))
    if holder and holder ~= owner then whole = false end
  end
  for i, kind in ipairs(kinds) do
    local key = lease_key(kind, ports[i])
    if whole then
      redis.call('SET', key, owner, 'PX', ttl)
    elseif (redis.call('GET', key) or owner) == owner then
      redis.call('DEL', key)
      give_back(kind, ports[i], 0)
    end
  end
  if whole then
    redis.call('ZADD', index .. 'ends', now + ttl, owner)
    return {'leased', ports[1], ports[2], ports[3]}
  end
end

-- The leases first: nothing but them needs to be taken back where one kind has none left.
local found, astray = {}, {}
local function send_to_rest() -- Leased behind the index's back: the lease is right, the index wrong.
  for _, each in ipairs(astray) do
    rest(each[1], each[2], math.max(redis.call('PTTL', lease_key(each[1], each[2])), 1000), 'leased')
  end
end
for i, kind in ipairs(kinds) do
  local at = 0
  while not found[i] do
    local port = redis.call('ZRANGE', index .. 'free:' .. kind, at, at)[1]
    if not port then
      for j = 1, i - 1 do redis.call('DEL', lease_key(kinds[j], found[j])) end
      send_to_rest()
      if mine then redis.call('HDEL', index .. 'sets', owner) redis.call('ZREM', index .. 'ends', owner) end
      return {'exhausted', kind, count_held()[i], redis.call('ZCARD', index .. 'resting:' .. kind)}
    end
    if redis.call('SET', lease_key(kind, port), owner, 'PX', ttl, 'NX') then
      found[i] = port
    else
      astray[#astray + 1] = {kind, port}
      at = at + 1
    end
  end
end
redis.call('HSET', index .. 'sets', owner, table.concat(found, ',') .. ',' .. now)
redis.call('ZADD', index .. 'ends', now + ttl, owner)
for i, kind in ipairs(kinds) do redis.call('ZREM', index .. 'free:' .. kind, found[i]) end
send_to_rest()
return {'leased', found[1], found[2], found[3]}
