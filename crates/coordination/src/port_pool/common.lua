-- Shared by all port scripts. KEYS[1]: the index. ARGV[1]: what all keys of the node begin with; ARGV[2]: layout,
-- the ranges the index was built for; ARGV[3]: the owner, where there is one. `adb:5555` is the lease of a port, its value the
-- owner; only these are shared by replicas of different layouts, so each port has one owner whatever an index says.
-- The index, one for each layout, is a hash: `layout`, once it is whole; `=owner`, the `adb,webrtc,scrcpy,since,end` (ms) that
-- an owner has; `due`, the ms before which no rest is over. Beside it are sorted sets, `free` for each kind (score = port) and
-- `resting` for all (`adb:5555`, score = ms when the rest is over), and `rests`, which maps `adb:5555` to `reason,since`.
-- Every port of the ranges is in one entry, free, or at rest, and in no two of them.
-- While a slot of a cluster moves, a script ends at the first key that is not there, with what it has done so far. So leases
-- are taken before an entry says so, a port goes back that could not be leased, and another is put where it goes before it is
-- taken from where it was: a sweep finds what is in two places, or in none, and has the index built anew.
local base, layout, index = ARGV[1], ARGV[2], KEYS[1] .. ':'
local kinds = {'adb', 'webrtc', 'scrcpy'}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local loaded = redis.call('HMGET', KEYS[1], 'layout', 'due', '=' .. (ARGV[3] or ''))
local built, due, entry = loaded[1] == layout, tonumber(loaded[2]) or math.huge, loaded[3]

local function lease_key(kind, port) return base .. kind .. ':' .. port end
local function range_of(kind)
  local low, high = string.match(layout, kind .. '=(%d+)%-(%d+)')
  return tonumber(low), tonumber(high)
end
local function inside(kind, port)
  local low, high = range_of(kind)
  return tonumber(port) >= low and tonumber(port) <= high
end

-- The three ports of an entry, since when they are held, and until when.
local function ports_of(entry)
  local adb, webrtc, scrcpy, since, ending = string.match(entry, '^(%d+),(%d+),(%d+),(%d+),(%d+)$')
  return {adb, webrtc, scrcpy}, since, tonumber(ending)
end
local function entry_of(ports, since, ending)
  return ports[1] .. ',' .. ports[2] .. ',' .. ports[3] .. ',' .. since .. ',' .. ending
end
-- Every owner with its entry.
local function entries()
  local all, found = redis.call('HGETALL', KEYS[1]), {}
  for at = 1, #all, 2 do
    local owner = string.match(all[at], '^=(.*)$')
    if owner then found[owner] = all[at + 1] end
  end
  return found
end

-- How many entries hold a port of each kind that is inside of its range; an earlier range may have had others.
local function count_held(held)
  local counts = {0, 0, 0}
  for _, entry in pairs(held) do
    for i, port in ipairs(ports_of(entry)) do
      if inside(kinds[i], port) then counts[i] = counts[i] + 1 end
    end
  end
  return counts
end
local function count_resting()
  local counts = {adb = 0, webrtc = 0, scrcpy = 0}
  for _, name in ipairs(redis.call('ZRANGE', index .. 'resting', 0, -1)) do
    local kind = string.match(name, '^%a+')
    counts[kind] = counts[kind] + 1
  end
  return {counts.adb, counts.webrtc, counts.scrcpy}
end

-- Sends a port to rest that nobody holds, `rested` ms of it being over; a longer rest is never shortened, and keeps its
-- reason.
local function rest(kind, port, ms, reason, rested)
  if not inside(kind, port) then return end
  local name = kind .. ':' .. port
  if redis.call('ZADD', index .. 'resting', 'GT', 'CH', now + ms, name) == 1 then
    redis.call('HSET', index .. 'rests', name, reason .. ',' .. (now - (rested or 0)))
    if now + ms < due then
      due = now + ms
      redis.call('HSET', KEYS[1], 'due', due)
    end
  end
  redis.call('ZREM', index .. 'free:' .. kind, port)
end

-- Ends the rest of a port, if it has one.
local function rouse(name)
  if redis.call('ZREM', index .. 'resting', name) == 1 then redis.call('HDEL', index .. 'rests', name) end
end

-- Frees a port that its holder no longer has, after a rest where there is one. It may be at rest already, because the
-- index did not know of its lease: that is over.
local function give_back(kind, port, ms, reason)
  rouse(kind .. ':' .. port)
  if ms > 0 then
    rest(kind, port, ms, reason)
  elseif inside(kind, port) then
    redis.call('ZADD', index .. 'free:' .. kind, port, port)
  end
end

-- Moves ports whose rest is over back to the free ones: those that are due longest, at most `limit`. Gives how many.
local function wake(limit)
  local names = redis.call('ZRANGEBYSCORE', index .. 'resting', '-inf', now, 'LIMIT', 0, limit)
  for _, name in ipairs(names) do
    local kind, port = string.match(name, '^(%a+):(%d+)$')
    redis.call('ZADD', index .. 'free:' .. kind, port, port)
  end
  if #names > 0 then
    redis.call('ZREM', index .. 'resting', unpack(names))
    redis.call('HDEL', index .. 'rests', unpack(names))
  end
  due = redis.call('ZRANGE', index .. 'resting', 0, 0, 'WITHSCORES')[2] or 'none'
  redis.call('HSET', KEYS[1], 'due', due)
  due = tonumber(due) or math.huge
  return #names
end
