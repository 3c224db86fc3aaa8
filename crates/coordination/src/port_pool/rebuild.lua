-- Builds the index from the database and from the leases that are alive. ARGV[3]: 1 to do so although there is one,
-- ARGV[4]: ms to live, ARGV[5]: ms of rest for leases that ran out, ARGV[6]: how many sets the database holds, then owner,
-- adb, webrtc, scrcpy of each, then kind, port, ms of rest left, reason and ms rested so far of each port at rest.
-- Answers 1, or 0 when the index is there already.
if built and ARGV[3] ~= '1' then return 0 end
local ttl, quarantine, count = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- What was known before: since when, and leases that ran out and were not swept.
local since, known, unswept = {}, {}, {}
for owner, entry in pairs(entries()) do
  local ports, start = ports_of(entry)
  since[owner], known[owner] = start, ports
  for i, kind in ipairs(kinds) do
    if ports[i] then unswept[kind .. ':' .. ports[i]] = true end
  end
end
-- Whatever breaks this off, the index is none until it is whole.
redis.call('DEL', KEYS[1])
local function keep(owner, ports, left)
  redis.call('HSET', KEYS[1], '=' .. owner, entry_of(ports, since[owner] or now, now + left))
end

-- What the database says is so, whoever else leased it: nobody else can be given it there.
local held, owned = {}, {}
local at = 7
for _ = 1, count do
  local owner, ports = ARGV[at], {ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]}
  local left = ttl
  for i, kind in ipairs(kinds) do
    local key = lease_key(kind, ports[i])
    if redis.call('GET', key) == owner then left = math.max(left, redis.call('PTTL', key)) end
    held[kind .. ':' .. ports[i]] = true
  end
  for i, kind in ipairs(kinds) do redis.call('SET', lease_key(kind, ports[i]), owner, 'PX', left) end
  keep(owner, ports, left)
  owned[owner] = true
  at = at + 4
end

-- What the database knows to rest.
local rests = {}
for i = at, #ARGV, 5 do rests[ARGV[i] .. ':' .. ARGV[i + 1]] = true end

local living, at_rest = {}, {}
for _, name in ipairs(redis.call('ZRANGE', index .. 'resting', 0, -1)) do
  if held[name] then rouse(name) else at_rest[name] = true end
end
for i, kind in ipairs(kinds) do
  redis.call('DEL', index .. 'free:' .. kind)
  local low, high = range_of(kind)
  for number = low, high do
    local port = string.format('%d', number)
    local name = kind .. ':' .. port
    if not held[name] then
      local owner = redis.call('GET', lease_key(kind, port))
      if owner then -- A lease outlived the index: it stays.
        living[owner] = living[owner] or {{}, {}, {}}
        table.insert(living[owner][i], port)
      elseif not at_rest[name] then
        give_back(kind, port, unswept[name] and quarantine or 0, 'expired')
      end
    end
  end
end
for owner, leased in pairs(living) do
  -- The set that the index knew, if it is all there; else the only one there can be.
  local ports = known[owner] or {leased[1][1], leased[2][1], leased[3][1]}
  local whole = not owned[owner]
  for i, kind in ipairs(kinds) do
    local alive = ports[i] and not held[kind .. ':' .. ports[i]] and redis.call('GET', lease_key(kind, ports[i])) == owner
    if not alive or (not known[owner] and #leased[i] > 1) then whole = false end
  end
  local longest = 1
  for i, kind in ipairs(kinds) do
    for _, port in ipairs(leased[i]) do
      local left = math.max(redis.call('PTTL', lease_key(kind, port)), 1)
      rouse(kind .. ':' .. port)
      if whole and port == ports[i] then
        longest = math.max(longest, left)
      elseif owned[owner] and rests[kind .. ':' .. port] then -- Its owner has given it up for another: see below.
        redis.call('DEL', lease_key(kind, port))
      else -- A part of a set is none: it rests until its owner gives it back or its lease has ended.
        rest(kind, port, left, 'leased')
      end
    end
  end
  if whole then keep(owner, ports, longest) end
end

while ARGV[at] do
  local kind, port, left, reason, rested = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3], tonumber(ARGV[at + 4])
  if inside(kind, port) and redis.call('EXISTS', lease_key(kind, port)) == 0 then
    rest(kind, port, left, reason, rested)
  end
  at = at + 5
end
due = redis.call('ZRANGE', index .. 'resting', 0, 0, 'WITHSCORES')[2] or 'none'
redis.call('HSET', KEYS[1], 'layout', layout, 'due', due)
return 1
