-- Takes back what nobody renews. ARGV[3]: ms of rest, ARGV[4]: most sets, and most ports of a kind, in one call.
-- Answers {ports expired, ports woken, 1 when more is left, ports that the index lost}, or {-1} when there is none.
if not built() then return {-1} end
local limit, expired, more = tonumber(ARGV[4]), 0, 0
local due = redis.call('ZRANGEBYSCORE', base .. 'ends', '-inf', now, 'LIMIT', 0, limit)
if #due == limit then more = 1 end
for _, owner in ipairs(due) do
  local set = redis.call('HGET', base .. 'sets', owner)
  local ports, left = set and ports_of(set) or {}, -2
  for i, port in ipairs(ports) do
    local key = lease_key(kinds[i], port)
    if redis.call('GET', key) == owner then left = math.max(left, redis.call('PTTL', key), 1) end
  end
  if left > 0 then -- Renewed behind the index's back: the lease is right, the index wrong.
    redis.call('ZADD', base .. 'ends', now + left, owner)
  else
    for i, port in ipairs(ports) do
      if redis.call('EXISTS', lease_key(kinds[i], port)) == 0 then
        give_back(kinds[i], port, tonumber(ARGV[3]), 'expired')
        expired = expired + 1
      end
    end
    redis.call('HDEL', base .. 'sets', owner)
    redis.call('ZREM', base .. 'ends', owner)
  end
end
local woken, lost = 0, 0
woken = wake(limit)
if woken >= limit then more = 1 end
local held = redis.call('HLEN', base .. 'sets')
for _, kind in ipairs(kinds) do
  local low, high = range_of(kind)
  local known = held + redis.call('ZCARD', base .. 'free:' .. kind) + redis.call('ZCARD', base .. 'resting:' .. kind)
  lost = math.max(lost, high - low + 1 - known)
end
return {expired, woken, more, lost}
