-- Appends events: checks, deduplication, offsets, latest events with their indexes, and a step of retention, at once.
--
-- ARGV: epoch, head that the node has told, now, events to keep, oldest to keep, how near to its end an event is that
-- those after it carry along, lease and its value ('' for none), subject and offset that are expected ('' for none),
-- key to remember ('' for none), digest, status, headers, body, whether the answer tells the counts, whether this is
-- repeated, number of events; for each event: digest, JSON, subject, whether it is an order's, number of index keys,
-- index keys.
-- Returns what refuses it, or OK, head before, first, offset of each event.
local meta = call('HMGET', META, 'epoch', 'head', 'first', 'accepted')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
local head, first, accepted = tonumber(meta[2]), tonumber(meta[3]), tonumber(meta[4])
if head < tonumber(ARGV[2]) then
  return {'LOST'}
end
local now, events, since, margin = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease, expected, remembered = ARGV[7], ARGV[9], ARGV[11]
local reply = P .. 'reply:' .. remembered
local count, at = tonumber(ARGV[18]), 19

if lease ~= '' and call('GET', P .. 'lease:' .. lease) ~= ARGV[8] then
  return {'FENCED'}
end
if remembered ~= '' and tonumber(call('HGET', reply, 'stored') or 0) > now - 86400000000 then
  return {'TAKEN'}
end
-- An append that is repeated because its answer was lost finds its events, not the place that it expected.
if expected ~= '' and score(ORDERS, expected) ~= tonumber(ARGV[10]) then
  if ARGV[17] ~= '1' or count == 0 or call('HEXISTS', IDS, ARGV[at]) == 0 then
    return {'CONFLICT'}
  end
end

local before = head
local soon = math.max(first, head + count - events + margin)
accepted = math.max(accepted, now)
local stamp = string.format('%d', accepted)
local places = {}

-- The subject's latest event is now the one at `offset`; the one before it was at `prev`.
local function supersede(subject, prev, offset, is_order, keys)
  local known = prev > 0 and call('HGET', KEYS_OF, subject)
  local packed = cmsgpack.pack(keys)
  local keeps_prev = false
  if is_order then
    drop_behind(subject, first)
    call('ZADD', ORDERS, offset, subject)
  elseif prev > 0 and score(ORDERS, subject) == prev then
    keeps_prev = true
    call('HSET', BEHIND, subject, known)
    add_keys(Y, cmsgpack.unpack(known), prev, subject)
  end
  if known ~= packed then
    if known then
      drop_keys(X, known, keys, subject)
    end
    call('HSET', KEYS_OF, subject, packed)
  end
  add_keys(X, keys, offset, subject)
  call('ZADD', LATEST, offset, subject)
  if prev > 0 and prev < first and not keeps_prev then
    call('HDEL', KEPT, prev)
  end
end

for i = 1, count do
  local digest, json, subject, is_order = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3] == '1'
  local size = tonumber(ARGV[at + 4])
  at = at + 5
  local offset = head + 1
  if call('HSETNX', IDS, digest, offset) == 0 then
    places[i] = tonumber(call('HGET', IDS, digest))
  else
    head = offset
    places[i] = offset
    local prev, old = 0, ''
    if subject ~= '' then
      prev = score(LATEST, subject)
      if prev > 0 and prev < soon then
        local found = entry(prev)
        old = found and found[4] or ''
      end
    end
    call('XADD', LOG, string.format('%d-0', offset), 'd', digest, 'p', prev, 'a', stamp, 's', subject, 'e', json,
      'b', old)
    if subject ~= '' then
      local keys = {}
      for k = 1, size do
        keys[k] = ARGV[at + k - 1]
      end
      supersede(subject, prev, offset, is_order, keys)
    end
  end
  at = at + size
end

first = evict_events(first, head, events, since, 2 * count + 100)
call('HSET', META, 'head', head, 'first', first, 'accepted', stamp)

if remembered ~= '' then
  call('DEL', reply)
  call('HSET', reply, 'stored', ARGV[3], 'digest', ARGV[12], 'status', ARGV[13], 'headers', ARGV[14], 'body', ARGV[15])
  if ARGV[16] == '1' then
    local top = count == 0 and head or 0
    for _, place in ipairs(places) do
      top = math.max(top, place)
    end
    call('HSET', reply, 'accepted', head - before, 'duplicates', count - (head - before), 'offset', top)
  end
  call('PEXPIRE', reply, 86400000)
end
return {'OK', before, first, places}
