-- Takes back what nobody renews. ARGV[3]: ms of rest, ARGV[4]: most sets, and most ports of a kind, in one call.
-- Answers {ports expired, ports woken, 1 when more is left, ports that the index has not once}, or {-1} when there is none.
if not built() then return {-1} end
local limit, expired, more = tonumber(ARGV[4]), 0, 0
local due = redis.call('ZRANGEBYSCORE', index .. 'ends', '-inf', now, 'LIMIT', 0, limit)
if #due == limit then more = 1 end
for _, owner in ipairs(due) do
  local set = redis.call('HGET', index .. 'sets', owner)
  local ports, left = set and ports_of(set) or {}, -2
  for i, port in ipairs(ports) do
    local key = lease_key(kinds[i], port)
    if redis.call('GET', key) == owner then left = math.max(left, redis.call('PTTL', key), 1) end
  end
  if left > 0 then -- Renewed behind the index's back: the lease is right, the index wrong.
    redis.call('ZADD', index .. 'ends', now + left, owner)
  else
    for i, port in ipairs(ports) do
      if redis.call('EXISTS', lease_key(kinds[i], port)) == 0 then
        give_back(kinds[i], port, tonumber(ARGV[3]), 'expired')
        expired = expired + 1
      end
    end
    redis.call('HDEL', index .. 'sets', owner)
    redis.call('ZREM', index .. 'ends', owner)
  end
end
local woken, due_still = wake(limit)
if due_still then more = 1 end
-- Too many is wrong as well: a port that is in two places would hide one that is in none.
local lost, held = 0, count_held()
for i, kind in ipairs(kinds) do
  local low, high = range_of(kind)
  local known = held[i] + redis.call('ZCARD', index .. 'free:' .. kind) + redis.call('ZCARD', index .. 'resting:' .. kind)
  lost = math.max(lost, math.abs(high - low + 1 - known))
end
-- An index of a layout that nobody has any more goes away; one that does so too early is built anew.
for _, key in ipairs({KEYS[1], index .. 'sets', index .. 'ends', index .. 'rests'}) do redis.call('PEXPIRE', key, 86400000) end
for _, kind in ipairs(kinds) do
  redis.call('PEXPIRE', index .. 'free:' .. kind, 86400000)
  redis.call('PEXPIRE', index .. 'resting:' .. kind, 86400000)
end
return {expired, woken, more, lost}
