-- Gives a set of ports back. ARGV[3]: owner, then port, ms of rest and reason of the adb, webrtc and scrcpy port; or the
-- owner alone: whatever set the index has of it, free at once.
-- Answers how many of the three were the owner's. Where it has another set by now, what both share stays its own.
local owner, given, count, whole = ARGV[3], {unpack(ARGV, 4)}, 0, true
local mine = built and entry
local ports = mine and ports_of(mine) or {}
if #given == 0 then
  if not mine then return 0 end
  given = {ports[1], 0, 'returned', ports[2], 0, 'returned', ports[3], 0, 'returned'}
end
for i = 1, 3 do
  if ports[i] ~= given[3 * i - 2] then whole = false end
end
for i, kind in ipairs(kinds) do
  local port, ms, reason = given[3 * i - 2], tonumber(given[3 * i - 1]), given[3 * i]
  local holder = redis.call('GET', lease_key(kind, port))
  if (whole and not holder) or (holder == owner and (whole or ports[i] ~= port)) then
    redis.call('DEL', lease_key(kind, port))
    if built then give_back(kind, port, ms, reason) end
    count = count + 1
  end
end
if whole then redis.call('HDEL', KEYS[1], '=' .. owner) end
return count
