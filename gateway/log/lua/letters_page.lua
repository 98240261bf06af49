-- Dead letters by id. ARGV: origin ('' for all), id after which they begin ('' for the first), most letters, most bytes.
-- Returns id and letter of each; at least one where there is one.
local key = ARGV[1] == '' and DEAD_IDS or DEAD_IDS .. ':' .. ARGV[1]
local low = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local found, room = {}, tonumber(ARGV[4])
for _, id in ipairs(call('ZRANGEBYLEX', key, low, '+', 'LIMIT', 0, ARGV[3])) do
  local letter = call('HGET', DEAD, id)
  room = room - #letter
  if room < 0 and #found > 0 then
    break
  end
  found[#found + 1] = id
  found[#found + 1] = letter
end
return {'OK', found}
