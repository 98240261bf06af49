-- Gives latest events other index keys. ARGV: epoch, index that these are for, whether orders behind later events, then for
-- each subject, offset, number of keys, keys. One that was superseded meanwhile has its keys already.
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
  local subject, offset, size = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local keys = {}
  for k = 1, size do
    keys[k] = ARGV[at + 2 + k]
  end
  at = at + 3 + size
  local is_latest = score(LATEST, subject) == offset
  if behind and not is_latest and score(ORDERS, subject) == offset then
    drop_keys(Y, call('HGET', BEHIND, subject) or cmsgpack.pack({}), keys, subject)
    call('HSET', BEHIND, subject, cmsgpack.pack(keys))
    add_keys(Y, keys, offset, subject)
  elseif not behind and is_latest then
    drop_keys(X, call('HGET', KEYS_OF, subject) or cmsgpack.pack({}), keys, subject)
    call('HSET', KEYS_OF, subject, cmsgpack.pack(keys))
    add_keys(X, keys, offset, subject)
  end
end
return {'OK'}
