-- Takes a slot of a service and publishes the entry. KEYS: entries, epoch.
-- ARGV: what slot keys begin with, service, owner (never used twice), ms to live, entry, preferred slot or -1, new epoch,
-- channel of the news.
-- Answers the slot, or -1 when there is none.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[7], 'NX')

local function take(slot)
  local key = ARGV[1] .. ARGV[2] .. ':' .. slot
  local holder = redis.call('GET', key)
  if holder and holder ~= ARGV[3] then return false end
  redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
  redis.call('HSET', KEYS[1], ARGV[2] .. ':' .. slot, now .. '|' .. ARGV[5])
  -- Who may not publish is a member all the same, and is seen by the poll.
  redis.pcall('PUBLISH', ARGV[8], 'joined ' .. ARGV[2] .. ':' .. slot)
  return true
end

if tonumber(ARGV[6]) >= 0 and take(ARGV[6]) then return tonumber(ARGV[6]) end
for slot = 0, 4095 do
  if take(string.format('%d', slot)) then return slot end
end
return -1
