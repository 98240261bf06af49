-- A step of retention. ARGV: epoch, events to keep, oldest event to keep, oldest latest event to keep, limit.
-- Returns head, first, and whether more is due at once.
local meta = call('HMGET', META, 'epoch', 'head', 'first')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
local head, before, limit = tonumber(meta[2]), tonumber(meta[3]), tonumber(ARGV[5])
local first = evict_events(before, head, tonumber(ARGV[2]), tonumber(ARGV[3]), limit)
if first > before then
  call('HSET', META, 'first', first)
end
local dropped = math.max(first - before, evict_latest(LATEST, first, tonumber(ARGV[4]), limit))
dropped = math.max(dropped, evict_latest(ORDERS, first, tonumber(ARGV[4]), limit))
return {'OK', head, first, dropped >= limit and 1 or 0}
