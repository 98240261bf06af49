-- An index is complete. ARGV: epoch, the index.
local meta = call('HMGET', META, 'epoch', 'index')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
if meta[2] ~= ARGV[2] then
  return {'INDEX'}
end
call('HSET', META, 'built', ARGV[2])
return {'OK'}
