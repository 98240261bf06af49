-- From now on events are indexed by other paths. ARGV: epoch, the new index. Returns the head: up to there they were not.
local meta = call('HMGET', META, 'epoch', 'head')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
call('HSET', META, 'index', ARGV[2], 'built', '')
return {'OK', tonumber(meta[2])}
