-- Takes, renews or ends a lease. ARGV: name, holder, milliseconds (0 ends it), note, token that is held (0 for none).
-- Returns its token, 0 where another holds it.
local key = P .. 'lease:' .. ARGV[1]
local value = call('GET', key)
local own = value and string.sub(value, 1, #ARGV[2] + 1) == ARGV[2] .. ' '
if tonumber(ARGV[3]) == 0 then
  if own and value == ARGV[2] .. ' ' .. ARGV[5] then
    call('DEL', key)
  end
  return {'OK', 0}
end
if value and not own then
  return {'OK', 0}
end
if own then
  call('PEXPIRE', key, ARGV[3])
else
  -- By the clock, so that a token never comes again, not even after FLUSHALL; and growing, whatever the clock does.
  local time = call('TIME')
  local token = tonumber(time[1]) * 1000000 + tonumber(time[2])
  token = string.format('%d', math.max(token, tonumber(call('HGET', P .. 'leases', ARGV[1]) or 0) + 1))
  call('HSET', P .. 'leases', ARGV[1], token)
  value = ARGV[2] .. ' ' .. token
  call('SET', key, value, 'PX', ARGV[3])
end
call('HSET', P .. 'notes', ARGV[1], ARGV[4])
return {'OK', tonumber(string.sub(value, #ARGV[2] + 2))}
