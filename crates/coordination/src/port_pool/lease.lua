-- Leases the lowest free port of each kind, all or none. ARGV[3]: owner, ARGV[4]: ms to live.
-- Answers {'leased', adb, webrtc, scrcpy}, {'missing'} or {'exhausted', kind, leased, resting}.
-- Runs where lease_lowest.lua met anything unusual.
if not built then return {'missing'} end
local owner, ttl = ARGV[3], ARGV[4]
-- Whatever is due comes back in the order in which it fell due. More than one lease takes, so that the lowest number is found
-- and that ports come back faster than they are leased.
local WAKE = 384
if due <= now then wake(WAKE) end

if entry then -- The same owner again: it keeps what it has.
  local ports, since = ports_of(entry)
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
    redis.call('HSET', KEYS[1], '=' .. owner, entry_of(ports, since, now + ttl))
    return {'leased', ports[1], ports[2], ports[3]}
  end
  redis.call('HDEL', KEYS[1], '=' .. owner)
end

local found, astray = {}, {}
local function send_to_rest() -- Leased behind the index's back: the lease is right, the index wrong.
  for _, each in ipairs(astray) do
    rest(each[1], each[2], math.max(redis.call('PTTL', lease_key(each[1], each[2])), 1000), 'leased')
  end
end
local function put_back()
  for i, port in ipairs(found) do
    redis.call('DEL', lease_key(kinds[i], port))
    redis.call('ZADD', index .. 'free:' .. kinds[i], port, port)
  end
  send_to_rest()
end
for i, kind in ipairs(kinds) do
  local free = index .. 'free:' .. kind
  while not found[i] do
    local port = redis.call('ZPOPMIN', free)[1]
    if port then
      local taken = redis.pcall('SET', lease_key(kind, port), owner, 'PX', ttl, 'NX')
      if not taken then
        astray[#astray + 1] = {kind, port}
      elseif taken.err then -- The slot moves: what was taken out of the index goes back.
        redis.call('ZADD', free, port, port)
        put_back()
        return taken
      else
        found[i] = port
      end
    elseif wake(WAKE) == 0 then
      put_back()
      return {'exhausted', kind, count_held(entries())[i], count_resting()[i]}
    end
  end
end
redis.call('HSET', KEYS[1], '=' .. owner, entry_of(found, now, now + ttl))
send_to_rest()
return {'leased', found[1], found[2], found[3]}
