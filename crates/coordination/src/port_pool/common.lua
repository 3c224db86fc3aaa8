-- Shared by all port scripts. KEYS[1]: index marker. ARGV[1]: what all keys of the node begin with; ARGV[2]: layout,
-- the ranges the index was built for. `adb:5555` is the lease of a port, its value the owner; only these are shared by
-- replicas of different layouts, so each port has one owner whatever an index says. The index, one for each layout:
-- `sets` maps an owner to `adb,webrtc,scrcpy,since`, `ends` (score = ms when its lease ends) tells which to sweep;
-- per kind `free` (score = port) and `resting` (score = ms when the rest is over); `rests` maps `kind:port` to
-- `reason,since`. Every port of the ranges is in one set, free, or at rest, and in no two of them.
-- While a slot of a cluster moves, a script ends at the first key that is not there, with what it has done so far. So leases
-- are taken before the index says so, and a port is put where it goes before it is taken from where it was: a sweep finds
-- what is in two places, or in none, and has the index built anew.
local base, layout, index = ARGV[1], ARGV[2], KEYS[1] .. ':'
local kinds = {'adb', 'webrtc', 'scrcpy'}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function built() return redis.call('GET', KEYS[1]) == layout end
local function lease_key(kind, port) return base .. kind .. ':' .. port end
local function range_of(kind)
  local low, high = string.match(layout, kind .. '=(%d+)%-(%d+)')
  return tonumber(low), tonumber(high)
end
local function inside(kind, port)
  local low, high = range_of(kind)
  return tonumber(port) >= low and tonumber(port) <= high
end
-- The three ports of an entry of `sets`, and since when they are held.
local function ports_of(set)
  local adb, webrtc, scrcpy, since = string.match(set, '^(%d+),(%d+),(%d+),(%d+)$')
  return {adb, webrtc, scrcpy}, since
end

-- How many sets hold a port of a kind that is inside of its range; an earlier range may have had others.
local function count_held()
  local counts = {0, 0, 0}
  for _, set in ipairs(redis.call('HVALS', index .. 'sets')) do
    for i, port in ipairs(ports_of(set)) do
      if inside(kinds[i], port) then counts[i] = counts[i] + 1 end
    end
  end
  return counts
end

-- Sends a port to rest that nobody holds, `rested` ms of it being over; a longer rest is never shortened, and keeps its
-- reason.
local function rest(kind, port, ms, reason, rested)
  if not inside(kind, port) then return end
  if redis.call('ZADD', index .. 'resting:' .. kind, 'GT', 'CH', now + ms, port) == 1 then
    redis.call('HSET', index .. 'rests', kind .. ':' .. port, reason .. ',' .. (now - (rested or 0)))
  end
  redis.call('ZREM', index .. 'free:' .. kind, port)
end

-- Frees a port that its holder no longer has, after a rest where there is one. It may be at rest already, because the
-- index did not know of its lease: that is over.
local function give_back(kind, port, ms, reason)
  if redis.call('ZREM', index .. 'resting:' .. kind, port) == 1 then
    redis.call('HDEL', index .. 'rests', kind .. ':' .. port)
  end
  if ms > 0 then
    rest(kind, port, ms, reason)
  elseif inside(kind, port) then
    redis.call('ZADD', index .. 'free:' .. kind, port, port)
  end
end

-- Moves ports whose rest is over back to the free ones: of each kind those that are due longest, at most `limit`.
-- Gives how many, and whether more may be due.
local function wake(limit)
  local moved, more = 0, false
  for _, kind in ipairs(kinds) do
    local due = redis.call('ZRANGEBYSCORE', index .. 'resting:' .. kind, '-inf', now, 'LIMIT', 0, limit)
    if #due > 0 then
      local scored, names = {}, {}
      for i, port in ipairs(due) do
        scored[2 * i - 1], scored[2 * i], names[i] = port, port, kind .. ':' .. port
      end
      redis.call('ZADD', index .. 'free:' .. kind, unpack(scored))
      redis.call('ZREM', index .. 'resting:' .. kind, unpack(due))
      redis.call('HDEL', index .. 'rests', unpack(names))
      moved, more = moved + #due, more or #due == limit
    end
  end
  return moved, more
end
