-- Takes a lease and its fencing token. KEYS: lease, token counter, the owner's farewell.
-- ARGV: owner (never used twice), ms to live, highest token the database knows ('' where it was not asked).
-- Answers {1, token}, {0, 0} when another holds it, {-1, 0} when the counter is gone and the floor is needed.
-- A request that arrives after its owner has gone takes nothing.
if redis.call('EXISTS', KEYS[3]) == 1 then return {0, 0} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {0, 0} end

local counter = tonumber(redis.call('GET', KEYS[2]))
local floor = tonumber(ARGV[3])
if not counter and not floor then return {-1, 0} end

if holder and (not floor or (counter and counter > floor)) then
  return {1, counter} -- The same command again: it already has its token.
end
local token = math.max(counter or 0, floor or 0) + 1
-- The counter may expire a day after its last use; the database remembers.
redis.call('SET', KEYS[2], string.format('%.0f', token), 'EX', 86400)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, token}
