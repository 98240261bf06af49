-- Whether this is the first call with a token. ARGV: token, now (microseconds), for how long it is remembered, nonce of
-- the call: one that is repeated because its answer was lost is the first one still.
local key, now, lasts = P .. 'used:' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local till, nonce = string.match(call('GET', key) or '', '^(%d+) (.*)$')
if tonumber(till or 0) > now then
  return {'OK', nonce == ARGV[4] and 1 or 0}
end
if lasts >= 1000 then
  call('SET', key, string.format('%d', now + lasts) .. ' ' .. ARGV[4], 'PX', math.ceil(lasts / 1000))
end
return {'OK', 1}
