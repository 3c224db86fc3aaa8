-- What most leases meet: an index that is whole, nothing due, an owner that has nothing yet, and the lowest free ports free
-- indeed. It stands before all that the other scripts share, for to define that takes a quarter of the time. Whatever else it
-- meets, it puts everything back, and lease.lua goes the whole way. Arguments and answer are those of lease.lua.
local function lease_lowest()
  local call, index, base, owner, ttl = redis.call, KEYS[1], ARGV[1], ARGV[3], ARGV[4]
  local loaded, time = call('HMGET', index, 'layout', 'due', '=' .. owner), call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if loaded[1] ~= ARGV[2] or loaded[3] or (tonumber(loaded[2]) or math.huge) <= now then return end

  local free = index .. ':free:'
  local adb, webrtc, scrcpy = call('ZPOPMIN', free .. 'adb')[1], call('ZPOPMIN', free .. 'webrtc')[1], call('ZPOPMIN', free .. 'scrcpy')[1]
  local function take(kind, port)
    local taken = port and redis.pcall('SET', base .. kind .. ':' .. port, owner, 'PX', ttl, 'NX')
    return taken and taken.ok -- An error where the slot moves.
  end
  local first = take('adb', adb)
  local second = first and take('webrtc', webrtc)
  if second and take('scrcpy', scrcpy) then
    call('HSET', index, '=' .. owner, adb .. ',' .. webrtc .. ',' .. scrcpy .. ',' .. now .. ',' .. now + ttl)
    return {'leased', adb, webrtc, scrcpy}
  end

  if first then call('DEL', base .. 'adb:' .. adb) end
  if second then call('DEL', base .. 'webrtc:' .. webrtc) end
  for kind, port in pairs({adb = adb, webrtc = webrtc, scrcpy = scrcpy}) do call('ZADD', free .. kind, port, port) end
end
local leased = lease_lowest()
if leased then return leased end

