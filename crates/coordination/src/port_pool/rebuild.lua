-- Builds the index anew where it is missing or was built for other ranges. ARGV[3]: ms to live, ARGV[4]: ms of rest,
-- ARGV[5]: how many sets are held, then owner, adb, webrtc, scrcpy of each, then adb, webrtc, scrcpy of resting ones.
-- Answers 1, or 0 when the index is there already.
if built() then return 0 end
local ttl, resting_ms, count = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('DEL', base .. 'sets', base .. 'holders')
local owners = {}
for _, kind in ipairs(kinds) do
  redis.call('DEL', base .. 'free:' .. kind, base .. 'leased:' .. kind)
  for _, port in ipairs(redis.call('ZRANGE', base .. 'resting:' .. kind, 0, -1)) do
    if not inside(kind, port) then redis.call('ZREM', base .. 'resting:' .. kind, port) end
  end
  local low, high = range_of(kind)
  for number = low, high do
    local port = string.format('%d', number)
    local ms = redis.call('PTTL', lease_key(kind, port))
    if ms > 0 then -- A lease outlived the index: it stays.
      local owner = redis.call('GET', lease_key(kind, port))
      hold(kind, port, owner, ms)
      owners[owner] = owners[owner] or {}
      owners[owner][kind] = port
    elseif not redis.call('ZSCORE', base .. 'resting:' .. kind, port) then
      redis.call('ZADD', base .. 'free:' .. kind, number, port)
    end
  end
end
for owner, set in pairs(owners) do
  if set.adb and set.webrtc and set.scrcpy then
    redis.call('HSET', base .. 'sets', owner, set.adb .. ',' .. set.webrtc .. ',' .. set.scrcpy)
  end
end

local at = 6
for _ = 1, count do
  local owner = ARGV[at]
  for i, kind in ipairs(kinds) do
    local port = ARGV[at + i]
    local holder = redis.call('GET', lease_key(kind, port))
    if not holder or holder == owner then
      hold(kind, port, owner, math.max(ttl, redis.call('PTTL', lease_key(kind, port))))
    end
  end
  redis.call('HSET', base .. 'sets', owner, ARGV[at + 1] .. ',' .. ARGV[at + 2] .. ',' .. ARGV[at + 3])
  at = at + 4
end
while ARGV[at] do
  for i, kind in ipairs(kinds) do
    local port = ARGV[at + i - 1]
    if redis.call('EXISTS', lease_key(kind, port)) == 0 then rest(kind, port, resting_ms) end
  end
  at = at + 3
end
redis.call('SET', KEYS[1], layout)
return 1
