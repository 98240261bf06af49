-- Stores dead letters; the oldest go where there are too many. ARGV: lease and its value ('' for none), most letters,
-- most bytes; for each letter id, origin, value. Returns how many had to go.
if ARGV[1] ~= '' and call('GET', P .. 'lease:' .. ARGV[1]) ~= ARGV[2] then
  return {'FENCED'}
end
for i = 5, #ARGV, 3 do
  drop_letter(ARGV[i])
  call('HSET', DEAD, ARGV[i], ARGV[i + 2])
  call('HSET', DEAD_ORIGIN, ARGV[i], ARGV[i + 1])
  call('ZADD', DEAD_IDS, 0, ARGV[i])
  call('ZADD', DEAD_IDS .. ':' .. ARGV[i + 1], 0, ARGV[i])
  call('INCRBY', DEAD_BYTES, #ARGV[i + 2])
end
local gone = 0
while call('HLEN', DEAD) > tonumber(ARGV[3]) or tonumber(call('GET', DEAD_BYTES) or 0) > tonumber(ARGV[4]) do
  local oldest = call('ZRANGE', DEAD_IDS, 0, 0)[1]
  if not oldest then
    break
  end
  drop_letter(oldest)
  gone = gone + 1
end
return {'OK', gone}
