-- Gives a log that has lost its end another epoch, unless somebody has done so. ARGV: its epoch, the new one.
-- Leases end with it: what was to stand behind events that are lost must not be appended before those come again.
if call('HGET', META, 'epoch') == ARGV[1] then
  call('HSET', META, 'epoch', ARGV[2])
  for _, name in ipairs(call('HKEYS', P .. 'leases')) do
    call('DEL', P .. 'lease:' .. name)
  end
end
return {'OK'}
