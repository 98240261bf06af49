-- Stores dead letters, each in place of the one with its id; the oldest go where there are too many.
-- ARGV: lease and its value ('' for none), most letters, most bytes; for each letter id, origin, time, bytes of its
-- payload, the letter. Returns how many had to go.
if ARGV[1] ~= '' and call('GET', P .. 'lease:' .. ARGV[1]) ~= ARGV[2] then
  return {'FENCED'}
end
for i = 5, #ARGV, 5 do
  local id, origin, size = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  drop_letter(id)
  call('HSET', DEAD, id, ARGV[i + 4])
  call('HSET', DEAD_OF, id, size .. ' ' .. origin)
  call('ZADD', DEAD_IDS, 0, id)
  call('ZADD', DEAD_IDS .. ':' .. origin, 0, id)
  call('ZADD', DEAD_TIMES, ARGV[i + 2], id)
  call('INCRBY', DEAD_BYTES, size)
end
local gone = 0
while call('HLEN', DEAD) > tonumber(ARGV[3]) or tonumber(call('GET', DEAD_BYTES) or 0) > tonumber(ARGV[4]) do
  gone = gone + drop_letter(call('ZRANGE', DEAD_TIMES, 0, 0)[1])
end
return {'OK', gone}
