-- Gives a log that has lost its end another epoch, unless somebody has done so. ARGV: its epoch, the new one.
if call('HGET', META, 'epoch') == ARGV[1] then
  call('HSET', META, 'epoch', ARGV[2])
end
return {'OK'}
