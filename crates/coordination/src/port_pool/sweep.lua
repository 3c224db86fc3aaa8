-- Takes back what nobody renews. ARGV[3]: ms of rest, ARGV[4]: most ports of a kind in one call.
-- Answers {expired, woken, 1 when more is left}, or {-1} when there is no index.
if not built() then return {-1} end
local limit, expired, more = tonumber(ARGV[4]), 0, 0
for _, kind in ipairs(kinds) do
  local due = redis.call('ZRANGEBYSCORE', base .. 'leased:' .. kind, '-inf', now, 'LIMIT', 0, limit)
  if #due == limit then more = 1 end
  for _, port in ipairs(due) do
    local ms = redis.call('PTTL', lease_key(kind, port))
    if ms == -2 then
      local holder = redis.call('HGET', base .. 'holders', kind .. ':' .. port)
      local set = holder and redis.call('HGET', base .. 'sets', holder)
      for i, each in ipairs(set and ports_of(set) or {}) do
        if kinds[i] == kind and each == port then redis.call('HDEL', base .. 'sets', holder) end
      end
      rest(kind, port, tonumber(ARGV[3]))
      expired = expired + 1
    else
      redis.call('ZADD', base .. 'leased:' .. kind, now + math.max(ms, 1), port)
    end
  end
end
local woken = wake(limit)
if woken >= limit then more = 1 end
return {expired, woken, more}
