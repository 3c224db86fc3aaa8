-- Gives a set of ports back. ARGV[3]: owner, then port, ms of rest and reason of the adb, webrtc and scrcpy port.
-- Answers how many of the three were the owner's. Where it has another set by now, what both share stays its own.
local owner, count, whole = ARGV[3], 0, true
local indexed = built()
local mine = indexed and redis.call('HGET', index .. 'sets', owner)
local ports = mine and ports_of(mine) or {}
for i = 1, 3 do
  if ports[i] ~= ARGV[1 + 3 * i] then whole = false end
end
for i, kind in ipairs(kinds) do
  local port, ms, reason = ARGV[1 + 3 * i], tonumber(ARGV[2 + 3 * i]), ARGV[3 + 3 * i]
  local holder = redis.call('GET', lease_key(kind, port))
  if (whole and not holder) or (holder == owner and (whole or ports[i] ~= port)) then
    redis.call('DEL', lease_key(kind, port))
    if indexed then give_back(kind, port, ms, reason) end
    count = count + 1
  end
end
if whole then
  redis.call('HDEL', index .. 'sets', owner)
  redis.call('ZREM', index .. 'ends', owner)
end
return count
