-- What every script knows: the names of the keys, and how an event is found by its offset.
--
-- {gateway}:meta    hash: format, epoch, secret, head, last (digest of the event at head), first, accepted, index (the
--                   paths by which events are indexed, as JSON), built (the same when all latest events are)
-- {gateway}:log     stream, ids OFFSET-0; fields m (see `parts`), e (JSON), b (JSON of the event before it of the same
--                   subject, where that may be gone soon): few, since each costs as much as the text in it
-- {gateway}:ids     hash: digest -> offset, of all that the log has
-- {gateway}:latest  sorted set: subject by the offset of its latest event
-- {gateway}:orders  sorted set: subject by the offset of its latest order.* event
-- {gateway}:kept    hash: offset -> prev, accepted, JSON of a latest event that the log has dropped
-- {gateway}:keys    hash: subject -> the index keys of its latest event, as JSON
-- {gateway}:behind  hash: subject -> those of its latest order.* event where that stands behind a later one
-- {gateway}:x:KEY   sorted set: the subjects whose latest event has that index key, by offset
-- {gateway}:y:KEY   sorted set: the same for latest order.* events behind later ones
-- {gateway}:call:NODE  number of the node's last append, and the head before it; for a minute
local P = '{gateway}:'
local META, LOG, IDS, KEPT = P .. 'meta', P .. 'log', P .. 'ids', P .. 'kept'
local LATEST, ORDERS = P .. 'latest', P .. 'orders'
local KEYS_OF, BEHIND = P .. 'keys', P .. 'behind'
local X, Y = P .. 'x:', P .. 'y:'
local call = redis.call

local CHUNK = 4000  -- arguments of one command: Lua's stack takes 8000; even, since they may be pairs

-- A command for many arguments, as few times as it takes; the answers as one list.
local function ask(command, key, arguments)
  local answers = {}
  for i = 1, #arguments, CHUNK do
    for _, each in ipairs(call(command, key, unpack(arguments, i, math.min(i + CHUNK - 1, #arguments)))) do
      answers[#answers + 1] = each
    end
  end
  return answers
end

local function tell(command, key, arguments)
  for i = 1, #arguments, CHUNK do
    call(command, key, unpack(arguments, i, math.min(i + CHUNK - 1, #arguments)))
  end
end

local function score(set, member)
  return tonumber(call('ZSCORE', set, member) or 0)
end

local NONE = string.rep('0', 16)  -- in place of a digest

-- What field m of an entry is: digest of its identity and that of the entry before it, 16 bytes each, then prev (the offset
-- of the event before it of the same subject), accepted (microseconds) and subject, with spaces between.
local function parts(m)
  return string.match(m, '^(%d+) (%d+) (.*)$', 33)
end

-- {offset, prev, accepted, JSON}; nil for an event that is neither in the log nor kept.
local function entry(offset)
  local found = call('XRANGE', LOG, string.format('%d-0', offset), string.format('%d-0', offset))[1]
  if found then
    local f = found[2]
    local prev, accepted = parts(f[2])
    return {offset, prev, accepted, f[4]}
  end
  local kept = call('HGET', KEPT, offset)
  if kept then
    local k = cmsgpack.unpack(kept)
    return {offset, k[1], k[2], k[3]}
  end
end

-- Takes the subject out of the sets of these keys, but for those that `stay` has.
local function drop_keys(family, packed, stay, subject)
  local staying = {}
  for _, key in ipairs(stay) do
    staying[key] = true
  end
  for _, key in ipairs(cjson.decode(packed)) do
    if not staying[key] then
      call('ZREM', family .. key, subject)
    end
  end
end

-- The latest order event behind a later one, where there is one, is no longer of interest.
local function drop_behind(subject, first)
  local packed = call('HGET', BEHIND, subject)
  if not packed then
    return
  end
  drop_keys(Y, packed, {}, subject)
  call('HDEL', BEHIND, subject)
  local offset = score(ORDERS, subject)
  if offset < first then
    call('HDEL', KEPT, offset)
  end
end
