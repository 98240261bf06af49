-- {gateway}:dead        hash: id -> the letter
-- {gateway}:dead:of     hash: id -> bytes of its payload and its origin, with a space between
-- {gateway}:dead:ids    sorted set: all ids, by id; with :ORIGIN those of one origin
-- {gateway}:dead:times  sorted set: all ids by the time of the letter
-- {gateway}:dead:bytes  how many bytes the payloads have
local DEAD, DEAD_OF, DEAD_IDS = P .. 'dead', P .. 'dead:of', P .. 'dead:ids'
local DEAD_TIMES, DEAD_BYTES = P .. 'dead:times', P .. 'dead:bytes'

-- Returns 1, or 0 where there is no such letter.
local function drop_letter(id)
  local of = call('HGET', DEAD_OF, id)
  if not of then
    return 0
  end
  local size, origin = string.match(of, '^(%d+) (.*)$')
  call('DECRBY', DEAD_BYTES, size)
  call('HDEL', DEAD, id)
  call('HDEL', DEAD_OF, id)
  call('ZREM', DEAD_IDS, id)
  call('ZREM', DEAD_IDS .. ':' .. origin, id)
  call('ZREM', DEAD_TIMES, id)
  return 1
end
