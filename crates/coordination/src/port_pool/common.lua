-- Shared by all port scripts. KEYS[1]: index marker. ARGV[1]: what all keys of the node begin with; ARGV[2]: layout,
-- the ranges the index was built for. `adb:5555` is the lease of a port, its value the owner. The index beside it:
-- `sets` maps an owner to `adb,webrtc,scrcpy,since`, `ends` (score = ms when its lease ends) tells which to sweep;
-- per kind `free` (score = port) and `resting` (score = ms when the rest is over); `rests` maps `kind:port` to
-- `reason,since`. Every port of the ranges is in one set, free, or at rest, and in no two of them.
local base, layout = ARGV[1], ARGV[2]
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

-- Sends a port to rest that nobody holds; a longer rest is never shortened.
local function rest(kind, port, ms, reason)
  if not inside(kind, port) then return end
  redis.call('ZREM', base .. 'free:' .. kind, port)
  if redis.call('ZADD', base .. 'resting:' .. kind, 'GT', 'CH', now + ms, port) == 1 then
    redis.call('HSET', base .. 'rests', kind .. ':' .. port, reason .. ',' .. now)
  end
end

-- Frees a port that its holder no longer has, after a rest where there is one. It may be at rest already, because the
-- index did not know of its lease: that is over.
local function give_back(kind, port, ms, reason)
  if redis.call('ZREM', base .. 'resting:' .. kind, port) == 1 then
    redis.call('HDEL', base .. 'rests', kind .. ':' .. port)
  end
  if ms > 0 then
    rest(kind, port, ms, reason)
  elseif inside(kind, port) then
    redis.call('ZADD', base .. 'free:' .. kind, port, port)
  end
end

-- Moves ports whose rest is over back to the free ones: of each kind those that are due longest, at most `limit`.
local function wake(limit)
  local moved = 0
  for _, kind in ipairs(kinds) do
    local due = redis.call('ZRANGEBYSCORE', base .. 'resting:' .. kind, '-inf', now, 'LIMIT', 0, limit)
    if #due > 0 then
      local scored, names = {}, {}
      for i, port in ipairs(due) do
        scored[2 * i - 1], scored[2 * i], names[i] = port, port, kind .. ':' .. port
      end
      redis.call('ZREM', base .. 'resting:' .. kind, unpack(due))
      redis.call('ZADD', base .. 'free:' .. kind, unpack(scored))
      redis.call('HDEL', base .. 'rests', unpack(names))
      moved = moved + #due
    end
  end
  return moved
end
