-- Gives latest events other index keys. ARGV: epoch, index that these are for, whether orders behind later events, then for
-- each subject, offset, keys as JSON. One that was superseded meanwhile has its keys already.
local meta = call('HMGET', META, 'epoch', 'index')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
if meta[2] ~= ARGV[2] then
  return {'INDEX'}
end

local function add_keys(family, keys, offset, subject)
  for _, key in ipairs(keys) do
    call('ZADD', family .. key, offset, subject)
  end
end

local behind, at = ARGV[3] == '1', 4
while at <= #ARGV do
  local subject, offset, packed = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local keys = cjson.decode(packed)
  at = at + 3
  local is_latest = score(LATEST, subject) == offset
  if behind and not is_latest and score(ORDERS, subject) == offset then
    drop_keys(Y, call('HGET', BEHIND, subject) or '[]', keys, subject)
    call('HSET', BEHIND, subject, packed)
    add_keys(Y, keys, offset, subject)
  elseif not behind and is_latest then
    drop_keys(X, call('HGET', KEYS_OF, subject) or '[]', keys, subject)
    call('HSET', KEYS_OF, subject, packed)
    add_keys(X, keys, offset, subject)
  end
end
return {'OK'}
