-- Shared by all port scripts. KEYS[1]: index marker. ARGV[1]: what all keys of the node begin with; ARGV[2]: layout,
-- the ranges the index was built for. Per kind: `free` (score = port), `leased` (score = ms when the lease ends) and
-- `resting` (score = ms when the rest is over); `holders` maps kind:port to the owner and `sets` the owner to its ports.
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
local function ports_of(set)
  local found = {}
  for port in string.gmatch(set, '%d+') do found[#found + 1] = port end
  return found
end

-- Lets a port be held: the lease itself, and what the index says about it.
local function hold(kind, port, owner, ttl)
  redis.call('SET', lease_key(kind, port), owner, 'PX', ttl)
  redis.call('ZREM', base .. 'free:' .. kind, port)
  redis.call('ZREM', base .. 'resting:' .. kind, port)
  redis.call('ZADD', base .. 'leased:' .. kind, now + ttl, port)
  redis.call('HSET', base .. 'holders', kind .. ':' .. port, owner)
end

-- Sends a port to rest; a longer rest is never shortened.
local function rest(kind, port, ms)
  redis.call('ZREM', base .. 'free:' .. kind, port)
  redis.call('ZREM', base .. 'leased:' .. kind, port)
  redis.call('HDEL', base .. 'holders', kind .. ':' .. port)
  if inside(kind, port) then
    redis.call('ZADD', base .. 'resting:' .. kind, 'GT', now + ms, port)
  end
end

-- Moves ports whose rest is over back to the free ones, at most `limit` of each kind.
local function wake(limit)
  local moved = 0
  for _, kind in ipairs(kinds) do
    local due = redis.call('ZRANGEBYSCORE', base .. 'resting:' .. kind, '-inf', now, 'LIMIT', 0, limit)
    for _, port in ipairs(due) do
      redis.call('ZREM', base .. 'resting:' .. kind, port)
      redis.call('ZADD', base .. 'free:' .. kind, port, port)
      moved = moved + 1
    end
  end
  return moved
end
