-- Events by offset. ARGV: epoch, then offsets, or "order" and a subject. Returns a row for each that is there.
if call('HGET', META, 'epoch') ~= ARGV[1] then
  return {'EPOCH'}
end
local rows = {}
if ARGV[2] == 'order' then
  rows[1] = entry(score(ORDERS, ARGV[3]))
else
  for i = 2, #ARGV do
    local found = call('XRANGE', LOG, ARGV[i] .. '-0', ARGV[i] .. '-0')[1]
    if found then
      local prev, accepted = parts(found[2][2])
      rows[#rows + 1] = {tonumber(ARGV[i]), prev, accepted, found[2][4]}
    end
  end
end
return {'OK', rows}
