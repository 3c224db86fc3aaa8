-- Gives a set of ports back, to rest. ARGV[3]: owner, ARGV[4]: ms of rest, ARGV[5..7]: adb, webrtc, scrcpy.
-- Answers how many of the three were the owner's.
local owner, count = ARGV[3], 0
local indexed = built()
for i, kind in ipairs(kinds) do
  local port = ARGV[4 + i]
  local holder = redis.call('GET', lease_key(kind, port))
  if not holder and indexed then holder = redis.call('HGET', base .. 'holders', kind .. ':' .. port) end
  if holder == owner then
    redis.call('DEL', lease_key(kind, port))
    if indexed then rest(kind, port, tonumber(ARGV[4])) end
    count = count + 1
  end
end
if redis.call('HGET', base .. 'sets', owner) == ARGV[5] .. ',' .. ARGV[6] .. ',' .. ARGV[7] then
  redis.call('HDEL', base .. 'sets', owner)
end
return count
