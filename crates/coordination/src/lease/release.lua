-- Gives a lease back for its owner alone. KEYS: lease, and the owner's farewell where a request of theirs may still be on
-- its way. ARGV: owner, ms for which the farewell is remembered.
if KEYS[2] then redis.call('SET', KEYS[2], 1, 'PX', ARGV[2]) end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
