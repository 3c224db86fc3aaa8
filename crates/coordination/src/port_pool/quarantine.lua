-- Sends ports that nobody leases to rest. ARGV[3]: ms of rest, then adb, webrtc, scrcpy.
-- Answers how many rest now, or -1 when there is no index.
if not built() then return -1 end
local count = 0
for i, kind in ipairs(kinds) do
  local port = ARGV[3 + i]
  if redis.call('EXISTS', lease_key(kind, port)) == 0
    and redis.call('HEXISTS', base .. 'holders', kind .. ':' .. port) == 0 and inside(kind, port) then
    rest(kind, port, tonumber(ARGV[3]))
    count = count + 1
  end
end
return count
