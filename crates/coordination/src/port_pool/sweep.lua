-- Takes back what nobody renews. ARGV[3]: ms of rest, ARGV[4]: most sets, and most ports at rest, in one call.
-- Answers {ports expired, ports woken, 1 when more is left, ports that the index has not once}, or {-1} when there is none.
if not built then return {-1} end
local limit, expired, more = tonumber(ARGV[4]), 0, 0
local held, ended = entries(), {}
for owner, entry in pairs(held) do
  local _, _, ending = ports_of(entry)
  if ending <= now then
    if #ended == limit then more = 1 break end
    ended[#ended + 1] = owner
  end
end
for _, owner in ipairs(ended) do
  local ports, since = ports_of(held[owner])
  local left = -2
  for i, port in ipairs(ports) do
    local key = lease_key(kinds[i], port)
    if redis.call('GET', key) == owner then left = math.max(left, redis.call('PTTL', key), 1) end
  end
  if left > 0 then -- Renewed behind the index's back: the lease is right, the index wrong.
    redis.call('HSET', KEYS[1], '=' .. owner, entry_of(ports, since, now + left))
  else
    for i, port in ipairs(ports) do
      if redis.call('EXISTS', lease_key(kinds[i], port)) == 0 then
        give_back(kinds[i], port, tonumber(ARGV[3]), 'expired')
        expired = expired + 1
      end
    end
    redis.call('HDEL', KEYS[1], '=' .. owner)
    held[owner] = nil
  end
end
local woken = wake(limit)
if woken == limit then more = 1 end
-- Too many is wrong as well: a port that is in two places would hide one that is in none.
local lost, leased, resting = 0, count_held(held), count_resting()
for i, kind in ipairs(kinds) do
  local low, high = range_of(kind)
  local known = leased[i] + redis.call('ZCARD', index .. 'free:' .. kind) + resting[i]
  lost = math.max(lost, math.abs(high - low + 1 - known))
end
-- An index of a layout that nobody has any more goes away; one that does so too early is built anew.
for _, key in ipairs({KEYS[1], index .. 'resting', index .. 'rests'}) do redis.call('PEXPIRE', key, 86400000) end
for _, kind in ipairs(kinds) do redis.call('PEXPIRE', index .. 'free:' .. kind, 86400000) end
return {expired, woken, more, lost}
