-- Whether this is the first call with a token. ARGV: token, now (microseconds), for how long it is remembered.
local key, now, lasts = P .. 'used:' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if tonumber(call('GET', key) or 0) > now then
  return {'OK', 0}
end
if lasts >= 1000 then
  call('SET', key, string.format('%d', now + lasts), 'PX', math.ceil(lasts / 1000))
end
return {'OK', 1}
