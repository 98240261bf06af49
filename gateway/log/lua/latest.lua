-- Latest events. ARGV: epoch, after, upto, limit, whether newest first, whether orders, index that the look-up needs ('' for
-- none), kind of look-up (none, subject, keys), then subjects or index keys. Returns a row for each: offset, prev, accepted, JSON.
local meta = call('HMGET', META, 'epoch', 'index', 'built')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
if ARGV[7] ~= '' and (meta[2] ~= ARGV[7] or meta[3] ~= ARGV[7]) then
  return {'INDEX'}
end
local after, upto, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local newest_first, orders, kind = ARGV[5] == '1', ARGV[6] == '1', ARGV[8]
local set = orders and ORDERS or LATEST
local offsets, seen = {}, {}

local function take(offset)
  if offset > after and offset <= upto and not seen[offset] then
    seen[offset] = true
    offsets[#offsets + 1] = offset
  end
end

-- The first `limit` of a sorted set that lie in range, in the order asked for, and that `fits` takes.
local function scan(key, fits)
  local low, high, found = string.format('(%d', after), string.format('%d', upto), 0
  repeat
    local rows
    if newest_first then
      rows = call('ZREVRANGEBYSCORE', key, high, low, 'WITHSCORES', 'LIMIT', 0, limit)
    else
      rows = call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES', 'LIMIT', 0, limit)
    end
    local offset
    for i = 1, #rows, 2 do
      offset = tonumber(rows[i + 1])
      if fits(rows[i], offset) then
        take(offset)
        found = found + 1
      end
    end
    if newest_first then
      high = string.format('(%d', offset or 0)
    else
      low = string.format('(%d', offset or 0)
    end
  until #rows < 2 * limit or found >= limit
end

local function any()
  return true
end

local function is_order(subject, offset)
  return score(ORDERS, subject) == offset
end

if kind == 'none' then
  scan(set, any)
elseif kind == 'subject' then
  for i = 9, #ARGV do
    take(score(set, ARGV[i]))
  end
else
  for i = 9, #ARGV do
    scan(X .. ARGV[i], orders and is_order or any)
    if orders then
      scan(Y .. ARGV[i], any)
    end
  end
end

table.sort(offsets, newest_first and function(a, b) return a > b end or nil)
local rows = {}
for i = 1, math.min(limit, #offsets) do
  rows[i] = entry(offsets[i])
end
return {'OK', rows}
