-- Sends ports that nobody leases to rest. ARGV[3]: ms of rest, ARGV[4]: reason, then kind and port of each.
-- Answers how many rest now, or -1 when there is no index.
if not built() then return -1 end
local count = 0
for at = 5, #ARGV, 2 do
  local kind, port = ARGV[at], ARGV[at + 1]
  local known = redis.call('ZSCORE', index .. 'free:' .. kind, port) or redis.call('ZSCORE', index .. 'resting:' .. kind, port)
  if known and redis.call('EXISTS', lease_key(kind, port)) == 0 then
    rest(kind, port, tonumber(ARGV[3]), ARGV[4])
    count = count + 1
  end
end
return count
