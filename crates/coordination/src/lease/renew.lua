-- Renews a lease for its owner alone. KEYS[1]: lease. ARGV: owner, ms to live.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
