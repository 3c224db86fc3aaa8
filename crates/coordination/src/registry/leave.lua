-- Gives slots back and withdraws their entries. KEYS[1]: entries. ARGV: what slot keys begin with, channel of the news,
-- then service:slot and owner of each. Answers how many were still held.
local count = 0
for at = 3, #ARGV, 2 do
  local key = ARGV[1] .. ARGV[at]
  if redis.call('GET', key) == ARGV[at + 1] then
    redis.call('DEL', key)
    redis.call('HDEL', KEYS[1], ARGV[at])
    count = count + 1
  end
end
if count > 0 then redis.pcall('PUBLISH', ARGV[2], 'left') end
return count
