-- Gives slots back and withdraws their entries. KEYS[1]: entries. ARGV: what slot keys begin with, then service:slot and
-- owner of each. Answers how many were still held.
local count = 0
for at = 2, #ARGV, 2 do
  local key = ARGV[1] .. ARGV[at]
  if redis.call('GET', key) == ARGV[at + 1] then
    redis.call('DEL', key)
    redis.call('HDEL', KEYS[1], ARGV[at])
    count = count + 1
  end
end
return count
