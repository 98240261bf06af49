-- {gateway}:dead         hash: id -> the letter
-- {gateway}:dead:origin  hash: id -> its origin
-- {gateway}:dead:ids     sorted set: all ids, by id; with :ORIGIN those of one origin
-- {gateway}:dead:bytes   how many bytes the letters have
local DEAD, DEAD_ORIGIN = P .. 'dead', P .. 'dead:origin'
local DEAD_IDS, DEAD_BYTES = P .. 'dead:ids', P .. 'dead:bytes'

-- Returns 1, or 0 where there is no such letter.
local function drop_letter(id)
  local origin = call('HGET', DEAD_ORIGIN, id)
  if not origin then
    return 0
  end
  call('INCRBY', DEAD_BYTES, -call('HSTRLEN', DEAD, id))
  call('HDEL', DEAD, id)
  call('HDEL', DEAD_ORIGIN, id)
  call('ZREM', DEAD_IDS, id)
  call('ZREM', DEAD_IDS .. ':' .. origin, id)
  return 1
end
