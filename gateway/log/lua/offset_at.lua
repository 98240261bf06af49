-- The offset before the first event accepted at or after a time. ARGV: epoch, microseconds.
local meta = call('HMGET', META, 'epoch', 'head', 'first')
if meta[1] ~= ARGV[1] then
  return {'EPOCH'}
end
local low, high, at = tonumber(meta[3]), tonumber(meta[2]) + 1, tonumber(ARGV[2])
while low < high do
  local middle = math.floor((low + high) / 2)
  if tonumber(entry(middle)[3]) >= at then
    high = middle
  else
    low = middle + 1
  end
end
return {'OK', low - 1}
