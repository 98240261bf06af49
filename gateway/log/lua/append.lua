-- Appends events: checks, deduplication, offsets, latest events with their indexes, and a step of retention, at once.
--
-- ARGV: epoch, head that the node has told, now, events to keep, oldest to keep, how near to its end an event is that
-- those after it carry along, lease and its value ('' for none), subject and offset that are expected ('' for none),
-- key to remember ('' for none), digest, status, headers, body, whether the answer tells the counts, node, number of
-- this call of the node's, whether it is repeated, number of events, the index that their keys are for; for
-- each event: digest, JSON, subject ('' for none), whether it is an order's, its index keys as JSON.
-- Returns what refuses it, or OK, head before, first, offset of each event.
local SLACK = 60000000  -- microseconds; an event that is too old so soon is near to its end, too

local meta = call('HMGET', META, 'epoch', 'head', 'first', 'accepted', 'last', 'index')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
if meta[6] ~= ARGV[21] then
  return {'INDEX'}
end
local head, first, accepted = tonumber(meta[2]), tonumber(meta[3]), tonumber(meta[4])
if head < tonumber(ARGV[2]) then
  return {'LOST'}
end
local now, events, since, margin = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease, expected, remembered = ARGV[7], ARGV[9], ARGV[11]
local reply = P .. 'reply:' .. remembered
local calls, number, count = P .. 'call:' .. ARGV[17], ARGV[18], tonumber(ARGV[20])
local BEGIN, SIZE = 22, 5  -- where the events' arguments begin, and how many each has

-- One that is repeated because its answer was lost gets the answer of the first time, whatever came since.
if ARGV[19] == '1' then
  local done, base = string.match(call('GET', calls) or '', '^(%d+) (%d+)$')
  if done == number then
    local digests = {}
    for n = 1, count do
      digests[n] = ARGV[BEGIN + (n - 1) * SIZE]
    end
    local places = ask('HMGET', IDS, digests)
    for n = 1, count do
      places[n] = tonumber(places[n] or first - 1)
    end
    return {'OK', tonumber(base), first, places}
  end
end

if lease ~= '' and call('GET', P .. 'lease:' .. lease) ~= ARGV[8] then
  return {'FENCED'}
end
if remembered ~= '' and tonumber(call('HGET', reply, 'stored') or 0) > now - 86400000000 then
  return {'TAKEN'}
end
if expected ~= '' and score(ORDERS, expected) ~= tonumber(ARGV[10]) then
  return {'CONFLICT'}
end

local before = head
local soon = math.max(first, head + count - events + margin)
if head >= first then
  local oldest = call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
  local _, since_when = parts(oldest[2][2])
  if tonumber(since_when) < since + SLACK then
    soon = math.max(soon, first + margin)
  end
end
accepted = math.max(accepted, now)
local stamp = string.format('%d', accepted)

-- What the log has of these events and of their subjects, asked for at once.
local digests, subjects, of = {}, {}, {}
for n = 1, count do
  local at = BEGIN + (n - 1) * SIZE
  local subject = ARGV[at + 2]
  digests[n] = ARGV[at]
  if subject ~= '' and not of[subject] then
    of[subject] = true
    subjects[#subjects + 1] = subject
  end
end
local known = ask('HMGET', IDS, digests)
local latest0, order0 = ask('ZMSCORE', LATEST, subjects), ask('ZMSCORE', ORDERS, subjects)
local keys0 = ask('HMGET', KEYS_OF, subjects)
local behind0 = call('EXISTS', BEHIND) == 1 and ask('HMGET', BEHIND, subjects) or {}
for n, subject in ipairs(subjects) do
  of[subject] = {
    latest = latest0[n] or '0', order = order0[n] or '0', keys = keys0[n], behind = behind0[n] or false
  }
end

-- The events are placed one after the other; what becomes of their subjects is written at the end, all at once.
-- Offsets stand as text wherever they go into a command: to make text of a number is what takes longest here.
local places, placed, ids = {}, {}, {}
local last = meta[5] or NONE
for i = 1, count do
  local at = BEGIN + (i - 1) * SIZE
  local digest, subject = digests[i], ARGV[at + 2]
  local place = tonumber(known[i] or placed[digest] or 0)
  if place == 0 then
    head = head + 1
    place = head
    placed[digest] = head
    local text = string.format('%d', head)
    ids[#ids + 1] = digest
    ids[#ids + 1] = text
    local it, prev, old = of[subject], '0', ''
    if it then
      prev = it.latest
      if prev ~= '0' and tonumber(prev) < soon then
        local found = entry(tonumber(prev))
        old = found and found[4] or ''
      end
    end
    call('XADD', LOG, text .. '-0', 'm', digest .. last .. prev .. ' ' .. stamp .. ' ' .. subject, 'e', ARGV[at + 1],
      'b', old)
    last = digest
    if it then
      if ARGV[at + 3] == '1' then
        it.order, it.behind = text, false
      elseif prev ~= '0' and it.order == prev then
        it.behind = it.keys
      end
      it.latest, it.keys, it.is_new = text, ARGV[at + 4], true
    end
  end
  places[i] = place
end

local latest, order, keys, gone, kept = {}, {}, {}, {}, {}
local adding, dropping = {}, {}

local function group_of(groups, set)
  local group = groups[set]
  if not group then
    group = {}
    groups[set] = group
  end
  return group
end

local function add(set, offset, subject)
  local group = group_of(adding, set)
  group[#group + 1] = offset
  group[#group + 1] = subject
end

local function collect_drops(family, packed, stay, subject)
  local staying = {}
  for _, key in ipairs(stay) do
    staying[key] = true
  end
  for _, key in ipairs(cjson.decode(packed)) do
    if not staying[key] then
      local group = group_of(dropping, family .. key)
      group[#group + 1] = subject
    end
  end
end

for n, subject in ipairs(subjects) do
  local it = of[subject]
  if it.is_new then
    local list = cjson.decode(it.keys)
    local was_latest, was_order = latest0[n] or '0', order0[n] or '0'
    latest[#latest + 1] = it.latest
    latest[#latest + 1] = subject
    if it.order ~= was_order then
      order[#order + 1] = it.order
      order[#order + 1] = subject
    end
    if it.keys ~= keys0[n] then
      if keys0[n] then
        collect_drops(X, keys0[n], list, subject)
      end
      keys[#keys + 1] = subject
      keys[#keys + 1] = it.keys
    end
    for _, key in ipairs(list) do
      add(X .. key, it.latest, subject)
    end
    local was_behind = behind0[n] or false
    if was_behind and (was_behind ~= it.behind or it.order ~= was_order) then
      collect_drops(Y, was_behind, {}, subject)
      if not it.behind then
        gone[#gone + 1] = subject
      end
    end
    if it.behind and (was_behind ~= it.behind or it.order ~= was_order) then
      call('HSET', BEHIND, subject, it.behind)
      for _, key in ipairs(cjson.decode(it.behind)) do
        add(Y .. key, it.order, subject)
      end
    end
    for _, offset in ipairs({was_latest, was_order}) do
      if offset ~= '0' and tonumber(offset) < first and offset ~= it.order then
        kept[#kept + 1] = offset
      end
    end
  end
end
for set, members in pairs(dropping) do
  tell('ZREM', set, members)
end
for set, members in pairs(adding) do
  tell('ZADD', set, members)
end
tell('HSET', IDS, ids)
tell('ZADD', LATEST, latest)
tell('ZADD', ORDERS, order)
tell('HSET', KEYS_OF, keys)
tell('HDEL', BEHIND, gone)
tell('HDEL', KEPT, kept)

first = evict_events(first, head, events, since, 2 * count + 100)
call('HSET', META, 'head', head, 'last', last, 'first', first, 'accepted', stamp)
call('SET', calls, number .. ' ' .. before, 'PX', 60000)

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
